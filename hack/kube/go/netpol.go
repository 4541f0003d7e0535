package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cloudnativelabs/kube-router/v2/pkg/controllers/netpol"
	"github.com/cloudnativelabs/kube-router/v2/pkg/healthcheck"
	"github.com/cloudnativelabs/kube-router/v2/pkg/options"
	"github.com/spf13/pflag"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	policySyncPeriod = time.Minute
	// Without a sync for so long it is not well.
	policyStalePeriod = 3 * policySyncPeriod
	nodePollPeriod    = 500 * time.Millisecond
)

// runNetworkPolicies enforces NetworkPolicies on this node, by kube-router's controller (iptables and ipset), which
// comes without the rest of kube-router: services are kube-proxy's, routes the network plugin's.
func runNetworkPolicies() {
	config := options.NewKubeRouterConfig()
	config.EnableIPv4, config.IPTablesSyncPeriod = true, policySyncPeriod
	flags := pflag.NewFlagSet("kube-netpol", pflag.ExitOnError)
	flags.StringVar(&config.Kubeconfig, "kubeconfig", "", "how to reach the API server")
	flags.StringVar(&config.HostnameOverride, "node", "", "the node's name")
	flags.StringSliceVar(&config.ClusterIPCIDRs, "service-cluster-ip-range", nil, "the services' addresses")
	health := flags.String("healthz-bind-address", "127.0.0.1:20244", "where /healthz is served")
	_ = flags.Parse(os.Args[1:]) // it exits by itself

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := enforce(ctx, config, *health); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func enforce(ctx context.Context, config *options.KubeRouterConfig, address string) error {
	rest, err := clientcmd.BuildConfigFromFlags("", config.Kubeconfig)
	if err != nil {
		return fmt.Errorf("reading %s: %w", config.Kubeconfig, err)
	}
	client, err := kubernetes.NewForConfig(rest)
	if err != nil {
		return fmt.Errorf("making a client: %w", err)
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	pods := factory.Core().V1().Pods().Informer()
	policies := factory.Networking().V1().NetworkPolicies().Informer()
	namespaces := factory.Core().V1().Namespaces().Informer()
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	tables, sets, err := netpol.NewIPTablesHandlers(config)
	if err != nil {
		return err
	}
	controller, err := netpol.NewNetworkPolicyController(
		client, config, pods, policies, namespaces, &sync.Mutex{}, tables, sets)
	for err != nil && ctx.Err() == nil { // the kubelet may not have made the node yet
		time.Sleep(nodePollPeriod)
		controller, err = netpol.NewNetworkPolicyController(
			client, config, pods, policies, namespaces, &sync.Mutex{}, tables, sets)
	}
	if err != nil {
		return err
	}
	for informer, handler := range map[cache.SharedIndexInformer]cache.ResourceEventHandler{
		pods: controller.PodEventHandler, policies: controller.NetworkPolicyEventHandler,
		namespaces: controller.NamespaceEventHandler,
	} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			return fmt.Errorf("watching: %w", err)
		}
	}
	beats := make(chan *healthcheck.ControllerHeartbeat)
	go serveHealth(address, beats)
	var running sync.WaitGroup
	running.Add(1)
	go controller.Run(beats, ctx.Done(), &running)
	<-ctx.Done() // a sync that is under way is repeated by the next start
	return nil
}

// serveHealth answers by when the last sync began.
func serveHealth(address string, beats <-chan *healthcheck.ControllerHeartbeat) {
	var last atomic.Int64
	go func() {
		for beat := range beats {
			last.Store(beat.LastHeartBeat.UnixNano())
		}
	}()
	http.HandleFunc("/healthz", func(answer http.ResponseWriter, _ *http.Request) {
		if age := time.Since(time.Unix(0, last.Load())); age > policyStalePeriod {
			http.Error(answer, fmt.Sprintf("the last sync was %s ago", age), http.StatusServiceUnavailable)
		}
	})
	if err := http.ListenAndServe(address, nil); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
