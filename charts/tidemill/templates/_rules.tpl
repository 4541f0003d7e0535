{{- /* In the namespaces of pipelines: what tidemill_operator/cluster/rbac.py says, no verb more (a test compares them). */ -}}
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
# Looked at by name: nothing of others can be listed.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, patch, update, delete]
# Whether a pipeline's last pods have ended, and to have changed files shown to pods at once.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, patch]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
{{- end -}}

{{- /* In the operator's own namespace: the leader's Lease, the webhook's certificate, the watchdog's object. */ -}}
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

{{- /* Before the release is removed: the operator is scaled to zero and its pods are awaited (uninstall.py). */ -}}
{{- define "tidemill.uninstallRules" -}}
- apiGroups: [apps]
  resources: [deployments]
  resourceNames: [{{ include "tidemill.fullname" . }}]
  verbs: [patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [list]
# What the operator made for itself.
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
