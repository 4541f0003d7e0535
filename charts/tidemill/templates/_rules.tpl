{{- /* The rules for namespaces of pipelines. They equal those of tidemill_operator/cluster/rbac.py; a test compares both. */ -}}
{{- define "tidemill.pipelineRules" -}}
- apiGroups: [tidemill.dev]
  resources: [analyticspipelines]
  verbs: [get, list, watch, patch]
- apiGroups: [tidemill.dev]
  resources: [analyticspipelines/status]
  verbs: [patch]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, update, delete]
- apiGroups: [""]
  resources: [configmaps, services, serviceaccounts]
  verbs: [get, list, watch, create, patch, update, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, update, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies, ingresses]
  verbs: [get, list, watch, create, patch, update, delete]
# Secrets are only read by name, so that the Secrets of others cannot be listed.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, patch, update, delete]
# `list` shows whether a pipeline's last pods have ended. `patch` makes pods reload changed files at once.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, patch]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
{{- end -}}

{{- /* The rules for the namespace of Strimzi's KafkaConnect. */ -}}
{{- define "tidemill.strimziRules" -}}
- apiGroups: [kafka.strimzi.io]
  resources: [kafkaconnectors]
  verbs: [get, list, create, patch, update, delete]
{{- end -}}

{{- /* The rules for the operator's own namespace: the Lease, the webhook's certificate, the watchdog's object. */ -}}
{{- define "tidemill.homeRules" -}}
{{- $name := include "tidemill.fullname" . -}}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [{{ $name }}]
  verbs: [get, update]
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]
- apiGroups: [""]
  resources: [secrets]
  resourceNames: [{{ $name }}-webhook]
  verbs: [get, patch]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [create, patch]
{{- end -}}

{{- /* The rules of uninstall.py, which scales the operator to zero and waits for its pods before the release is removed. */ -}}
{{- define "tidemill.uninstallRules" -}}
- apiGroups: [apps]
  resources: [deployments]
  resourceNames: [{{ include "tidemill.fullname" . }}]
  verbs: [patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [list]
# The objects that the operator created for itself.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [{{ include "tidemill.fullname" . }}]
  verbs: [delete]
- apiGroups: [""]
  resources: [secrets]
  resourceNames: [{{ include "tidemill.fullname" . }}-webhook]
  verbs: [delete]
- apiGroups: [""]
  resources: [configmaps]
  resourceNames: [tidemill-watchdog]
  verbs: [delete]
{{- end -}}
