{{- /* The operator's environment variables. docs/reference/environment.md lists them. */ -}}
{{- define "tidemill.environment" -}}
{{- $name := include "tidemill.fullname" . -}}
{{- $webhook := include "tidemill.webhookEnabled" . -}}
- name: TIDEMILL_RUNTIME
  value: kubernetes
- name: TIDEMILL_CLUSTER_ID
  value: {{ .Values.clusterId | quote }}
- name: TIDEMILL_OPERATOR_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: TIDEMILL_POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: TIDEMILL_LEASE_NAME
  value: {{ $name }}
- name: TIDEMILL_LOG_LEVEL
  value: {{ .Values.operator.logLevel }}
- name: TIDEMILL_DRIFT_SECONDS
  value: {{ .Values.operator.driftSeconds | quote }}
- name: TIDEMILL_STATUS_PORT
  value: "8082"
{{- with .Values.watch.namespaces }}
- name: TIDEMILL_WATCH_NAMESPACES
  value: {{ join "," . | quote }}
{{- end }}
- name: TIDEMILL_KAFKA_BROKERS
  value: {{ required "kafka.brokers is required: bootstrap brokers as host:port,…" .Values.kafka.brokers | quote }}
{{- if and .Values.production (include "tidemill.sharedKafkaLogin" .) }}
{{- fail (printf "kafka.workloadKey: %s would give the operator's own Kafka login to the namespaces of all pipelines; name another key of the Secret %s, with a login that only reads and writes their topics, or set production: false" (.Values.kafka.workloadKey | default "empty, it" ) .Values.kafka.existingSecret) }}
{{- end }}
{{- if .Values.kafka.existingSecret }}
- name: TIDEMILL_KAFKA_CONFIG
  value: /etc/tidemill/kafka/client/{{ .Values.kafka.key }}
{{- with .Values.kafka.workloadKey }}
- name: TIDEMILL_WORKLOAD_KAFKA_CONFIG
  value: /etc/tidemill/kafka/client/{{ . }}
{{- end }}
{{- end }}
- name: TIDEMILL_REPLICATION_THROTTLE
  value: {{ .Values.kafka.replicationThrottle | int64 | quote }}
- name: TIDEMILL_OFFSETS_REPLICATION_FACTOR
  value: {{ .Values.kafka.offsetsReplicationFactor | int64 | quote }}
- name: TIDEMILL_RECREATE_TOPICS
  value: {{ .Values.kafka.recreateTopics | quote }}
- name: TIDEMILL_POSTGRES_URL
  valueFrom:
    secretKeyRef:
      name: {{ required "postgres.existingSecret is required: a Secret with the URL of an administrator's login" .Values.postgres.existingSecret }}
      key: {{ .Values.postgres.key }}
{{- if .Values.postgres.caSecret }}
- name: TIDEMILL_POSTGRES_CA
  value: /etc/tidemill/postgres/ca.crt
{{- end }}
{{- if .Values.redis.existingSecret }}
- name: TIDEMILL_REDIS_URL
  valueFrom:
    secretKeyRef:
      name: {{ .Values.redis.existingSecret }}
      key: {{ .Values.redis.key }}
{{- else if .Values.redis.url }}
- name: TIDEMILL_REDIS_URL
  value: {{ .Values.redis.url | quote }}
{{- end }}
{{- if .Values.redis.caSecret }}
- name: TIDEMILL_REDIS_CA
  value: /etc/tidemill/redis/ca.crt
{{- end }}
{{- with .Values.connect }}
{{- if gt (len (compact (list .image .strimzi.cluster .url))) 1 }}
{{- fail "connect.image, connect.strimzi.cluster, connect.url: set only one of them, because a platform has one Kafka Connect" }}
{{- end }}
{{- if .image }}
- name: TIDEMILL_CONNECT_IMAGE
  value: {{ .image | quote }}
- name: TIDEMILL_CONNECT_REPLICAS
  value: {{ .replicas | int64 | quote }}
- name: TIDEMILL_CONNECT_MEMORY
  value: {{ .memory | quote }}
- name: TIDEMILL_CONNECT_EGRESS_PORTS
  value: {{ join "," .egressPorts | quote }}
{{- end }}
{{- if .strimzi.cluster }}
- name: TIDEMILL_CONNECT_STRIMZI
  value: {{ printf "%s/%s" (required "connect.strimzi.namespace is required: the namespace of the KafkaConnect" .strimzi.namespace) .strimzi.cluster | quote }}
{{- end }}
{{- if .url }}
- name: TIDEMILL_CONNECT_URL
  value: {{ .url | quote }}
{{- end }}
{{- if or .url .strimzi.cluster }}
- name: TIDEMILL_CONNECT_SECRETS
  value: {{ .secretReference | quote }}
{{- end }}
{{- end }}
- name: TIDEMILL_RESILIENCE_FILE
  value: /etc/tidemill/resilience/resilience.yaml
- name: TIDEMILL_DEFAULT_PARTITIONS
  value: {{ .Values.defaults.partitions | quote }}
- name: TIDEMILL_DEFAULT_REPLICATION_FACTOR
  value: {{ .Values.defaults.replicationFactor | quote }}
- name: TIDEMILL_AUTH_REQUIRED
  value: {{ .Values.defaults.authRequired | quote }}
{{- with .Values.ingest }}
- name: TIDEMILL_INGEST_EVENTS_PER_SECOND
  value: {{ .eventsPerSecond | int64 | quote }}
- name: TIDEMILL_INGEST_BYTES_PER_SECOND
  value: {{ .bytesPerSecond | int64 | quote }}
- name: TIDEMILL_INGEST_IN_FLIGHT_BYTES
  value: {{ .inFlightBytes | int64 | quote }}
{{- end }}
{{- with .Values.api }}
- name: TIDEMILL_API_KEYLESS_CONNECTIONS
  value: {{ .keylessConnections | int64 | quote }}
- name: TIDEMILL_API_KEYLESS_PER_ADDRESS
  value: {{ .keylessPerAddress | int64 | quote }}
{{- end }}
{{- with .Values.allowedHosts }}
- name: TIDEMILL_ALLOWED_HOSTS
  value: {{ join "," . | quote }}
{{- end }}
- name: TIDEMILL_HTTP_CONNECTIONS
  value: {{ .Values.httpConnections | int64 | quote }}
{{- with .Values.defaults.topicPrefixes }}
- name: TIDEMILL_TOPIC_PREFIXES
  value: {{ join "," . | quote }}
{{- end }}
{{- with .Values.defaults.readableTopics }}
- name: TIDEMILL_READABLE_TOPICS
  value: {{ join "," . | quote }}
{{- end }}
- name: TIDEMILL_IMAGE_INGEST
  value: {{ include "tidemill.image" (list . "ingest") | quote }}
- name: TIDEMILL_IMAGE_PROCESSOR
  value: {{ include "tidemill.image" (list . "processor") | quote }}
- name: TIDEMILL_IMAGE_API
  value: {{ include "tidemill.image" (list . "api") | quote }}
- name: TIDEMILL_IMAGE_PULL_POLICY
  value: {{ .Values.image.pullPolicy }}
{{- with .Values.image.pullSecrets }}
- name: TIDEMILL_IMAGE_PULL_SECRETS
  value: {{ join "," . | quote }}
{{- end }}
- name: TIDEMILL_NETWORK_POLICIES
  value: {{ .Values.networkPolicy.enabled | quote }}
- name: TIDEMILL_EGRESS_PORTS
  value: {{ join "," .Values.networkPolicy.egressPorts | quote }}
{{- with .Values.ingress }}
{{- if .domain }}
- name: TIDEMILL_INGRESS_DOMAIN
  value: {{ .domain | quote }}
- name: TIDEMILL_INGRESS_CLASS
  value: {{ .className | quote }}
- name: TIDEMILL_INGRESS_TLS_SECRET
  value: {{ .tlsSecret | quote }}
- name: TIDEMILL_INGRESS_ANNOTATIONS
  value: {{ toJson .annotations | quote }}
{{- end }}
{{- end }}
- name: TIDEMILL_WEBHOOK_PORT
  value: {{ ternary .Values.webhook.port 0 (eq $webhook "true") | quote }}
{{- if $webhook }}
- name: TIDEMILL_WEBHOOK_SERVICE
  value: {{ $name }}-webhook
- name: TIDEMILL_WEBHOOK_CONFIGURATION
  value: {{ include "tidemill.clusterName" . }}
- name: TIDEMILL_WEBHOOK_SECRET
  value: {{ $name }}-webhook
{{- end }}
{{- range $key, $value := .Values.operator.extraEnv }}
- name: {{ $key }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}
