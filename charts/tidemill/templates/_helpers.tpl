{{- define "tidemill.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "tidemill.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "tidemill.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "tidemill.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "tidemill.selector" -}}
app.kubernetes.io/name: {{ include "tidemill.name" . }}-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "tidemill.labels" -}}
{{ include "tidemill.selector" . }}
app.kubernetes.io/component: operator
app.kubernetes.io/part-of: tidemill
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "tidemill.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "tidemill.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- /* The name of cluster-wide objects. It has the namespace, so that releases of one name in two namespaces differ. */ -}}
{{- define "tidemill.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "tidemill.fullname" .) | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "tidemill.webhookEnabled" -}}
{{- if and .Values.webhook.enabled (not .Values.watch.namespaces) -}}true{{- end -}}
{{- end -}}

{{- /* Whether pods of pipelines get the operator's own Kafka login. */ -}}
{{- define "tidemill.sharedKafkaLogin" -}}
{{- with .Values.kafka -}}{{- if and .existingSecret (or (not .workloadKey) (eq .workloadKey .key)) -}}true{{- end -}}{{- end -}}
{{- end -}}

{{- /* tidemill.image (list $ "ingest") */ -}}
{{- define "tidemill.image" -}}
{{- $root := index . 0 -}}
{{- $image := index $root.Values.image (index . 1) -}}
{{- $repository := $image.repository -}}
{{- with $root.Values.image.registry -}}{{- $repository = printf "%s/%s" (trimSuffix "/" .) $repository -}}{{- end -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (default (default $root.Chart.AppVersion $root.Values.image.tag) $image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "tidemill.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- /* The members that all our pods have. */ -}}
{{- define "tidemill.pod" -}}
enableServiceLinks: false
securityContext:
  {{- include "tidemill.podSecurity" . | nindent 2 }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .Values.operator.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "tidemill.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- /* The ports of Kafka's brokers as a YAML list. */ -}}
{{- define "tidemill.brokerPorts" -}}
{{- $ports := list -}}
{{- range splitList "," .Values.kafka.brokers -}}
{{- $ports = append $ports (splitList ":" (trim .) | last | int) -}}
{{- end -}}
{{- $ports | uniq | toYaml -}}
{{- end -}}

{{- /* The port of Kafka Connect's REST interface, as a YAML list. */ -}}
{{- define "tidemill.connectPorts" -}}
{{- $ports := list -}}
{{- if .Values.connect.image -}}
{{- $ports = append $ports 8083 -}}
{{- end -}}
{{- with .Values.connect.url -}}
{{- $url := urlParse . -}}
{{- $given := regexFind ":[0-9]+$" $url.host | trimPrefix ":" -}}
{{- $ports = append $ports (ternary (int $given) (ternary 443 80 (eq $url.scheme "https")) (ne $given "")) -}}
{{- end -}}
{{- $ports | toYaml -}}
{{- end -}}

{{- /* The files of the operator, and of Jobs that do its work. */ -}}
{{- define "tidemill.mounts" -}}
- name: resilience
  mountPath: /etc/tidemill/resilience
  readOnly: true
{{- if .Values.kafka.existingSecret }}
- name: kafka
  mountPath: /etc/tidemill/kafka/client
  readOnly: true
{{- end }}
{{- range $server := list "postgres" "redis" }}
{{- if (index $.Values $server).caSecret }}
- name: {{ $server }}-ca
  mountPath: /etc/tidemill/{{ $server }}
  readOnly: true
{{- end }}
{{- end }}
- name: tmp
  mountPath: /tmp
{{- end -}}

{{- define "tidemill.volumes" -}}
- name: resilience
  configMap:
    name: {{ include "tidemill.fullname" . }}-resilience
{{- with .Values.kafka.existingSecret }}
- name: kafka
  secret:
    secretName: {{ . }}
{{- end }}
{{- range $server := list "postgres" "redis" }}
{{- with index $.Values $server }}
{{- if .caSecret }}
- name: {{ $server }}-ca
  secret:
    secretName: {{ .caSecret }}
    items:
      - key: {{ .caKey }}
        path: ca.crt
{{- end }}
{{- end }}
{{- end }}
- name: tmp
  emptyDir:
    sizeLimit: 64Mi
{{- end -}}

{{- /* The ports that the operator connects to. */ -}}
{{- define "tidemill.egress" -}}
- ports:
    - port: 53
      protocol: UDP
    - port: 53
      protocol: TCP
- ports:
    {{- range concat .Values.networkPolicy.apiServerPorts .Values.networkPolicy.egressPorts (include "tidemill.brokerPorts" . | fromYamlArray) (include "tidemill.connectPorts" . | fromYamlArray) | uniq }}
    - port: {{ . }}
      protocol: TCP
    {{- end }}
{{- end -}}

{{- /* tidemill.jobLabels (list $ "uninstall"): labels of a Job's pods, which the operator's selectors must not find. */ -}}
{{- define "tidemill.jobLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "tidemill.name" $root }}-{{ index . 1 }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
app.kubernetes.io/part-of: tidemill
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
{{- end -}}
