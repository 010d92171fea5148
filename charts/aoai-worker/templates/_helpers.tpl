{{/*
Names, labels and what the templates share. What the values lead to (replicas, queues, hosts) is in _values.tpl,
what they must be in _problems.tpl.
*/}}

{{- define "aoai-worker.name" -}}
{{- .Values.nameOverride | default .Chart.Name -}}
{{- end }}

{{/* Short enough for the suffixes of other objects, and for KEDA, which allows 63. */}}
{{- define "aoai-worker.fullname" -}}
{{- $name := include "aoai-worker.name" . -}}
{{- $full := .Values.fullnameOverride | default (ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name)) -}}
{{- $full | trunc 52 | trimSuffix "-" -}}
{{- end }}

{{- define "aoai-worker.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "aoai-worker.fullname" .) "default" .Values.serviceAccount.create) -}}
{{- end }}

{{/* Never change these three: a Deployment's selector is immutable. */}}
{{- define "aoai-worker.selectorLabels" -}}
app.kubernetes.io/name: {{ include "aoai-worker.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: worker
{{- end }}

{{/* All pods of the release: the workers' and the one of `helm test`. */}}
{{- define "aoai-worker.releaseLabels" -}}
app.kubernetes.io/name: {{ include "aoai-worker.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{/*
Own labels win over the values' (`extra`, then commonLabels), so none can break a selector.
Call with a dict: root, component, extra.
*/}}
{{- define "aoai-worker.labels" -}}
{{- $own := dict
    "app.kubernetes.io/name" (include "aoai-worker.name" .root)
    "app.kubernetes.io/instance" .root.Release.Name
    "app.kubernetes.io/version" (.root.Values.image.tag | default .root.Chart.AppVersion | trunc 63 | trimSuffix "-" | trimSuffix "." | trimSuffix "_")
    "app.kubernetes.io/managed-by" .root.Release.Service
    "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-")
    "app.kubernetes.io/component" (.component | default "worker") -}}
{{- toYaml (merge $own (.extra | default dict) .root.Values.commonLabels) -}}
{{- end }}

{{- define "aoai-worker.metadata" -}}
name: {{ printf "%s%s" (include "aoai-worker.fullname" .root) (.suffix | default "") | quote }}
namespace: {{ .root.Release.Namespace | quote }}
labels:
  {{- include "aoai-worker.labels" . | nindent 2 }}
{{- with merge dict (.annotations | default dict) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "aoai-worker.image" -}}
{{- $image := .Values.image -}}
{{- printf "%s/%s%s" $image.registry $image.repository (ternary (printf "@%s" $image.digest) (printf ":%s" ($image.tag | default .Chart.AppVersion)) (ne $image.digest "")) -}}
{{- end }}

{{- define "aoai-worker.usesWorkloadIdentity" -}}
{{- if ne (.Values.config.credential | default "auto") "managed" }}true{{ end -}}
{{- end }}

{{/* Labels of a pod: those that select it, what the webhook looks for, and the user's. */}}
{{- define "aoai-worker.podLabels" -}}
{{- $wanted := dict -}}
{{- if include "aoai-worker.usesWorkloadIdentity" .root }}
{{- $_ := set $wanted "azure.workload.identity/use" "true" -}}
{{- end }}
{{- $own := include "aoai-worker.labels" . | fromYaml -}}
{{- toYaml (merge (omit $own "helm.sh/chart" "app.kubernetes.io/managed-by") $wanted .root.Values.podLabels) -}}
{{- end }}

{{- define "aoai-worker.podAnnotations" -}}
{{- $own := dict "checksum/config" (include "aoai-worker.config" . | sha256sum) -}}
{{- if .Values.workloadIdentity.identityBinding.enabled }}
{{- $_ := set $own "azure.workload.identity/use-identity-binding" "true" -}}
{{- end }}
{{- toYaml (merge $own .Values.podAnnotations) -}}
{{- end }}

{{/* What the worker's pod and the pod of `helm test` have in common: everything but probes, spreading and arguments. */}}
{{- define "aoai-worker.podSpec" -}}
serviceAccountName: {{ include "aoai-worker.serviceAccountName" . | quote }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- $secrets := list }}
{{- range concat .Values.global.imagePullSecrets .Values.imagePullSecrets }}
{{- $secrets = append $secrets (kindIs "map" . | ternary . (dict "name" .)) }}
{{- end }}
{{- with $secrets | uniq }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .Values.runtimeClassName }}
runtimeClassName: {{ . | quote }}
{{- end }}
{{- with .Values.hostAliases }}
hostAliases:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.dnsPolicy }}
dnsPolicy: {{ . }}
{{- end }}
{{- with .Values.dnsConfig }}
dnsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumes:
  - name: config
    configMap:
      name: {{ include "aoai-worker.fullname" . | quote }}
  {{- with .Values.trustedCA.configMap }}
  - name: trusted-ca
    configMap:
      name: {{ . | quote }}
  {{- end }}
  {{- with .Values.extraVolumes }}
  {{- tpl (toYaml .) $ | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "aoai-worker.container" -}}
image: {{ include "aoai-worker.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- toYaml .Values.containerSecurityContext | nindent 2 }}
env:
  - name: AOAI_WORKER_CONFIG
    value: /etc/aoai-worker/worker.yaml
  {{- if and (not (include "aoai-worker.usesWorkloadIdentity" .)) .Values.workloadIdentity.clientId }}
  - name: AZURE_CLIENT_ID
    value: {{ .Values.workloadIdentity.clientId | quote }}
  {{- end }}
  {{- with .Values.extraEnv }}
  {{- tpl (toYaml .) $ | nindent 2 }}
  {{- end }}
{{- with .Values.extraEnvFrom }}
envFrom:
  {{- tpl (toYaml .) $ | nindent 2 }}
{{- end }}
{{- with .Values.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts:
  - name: config
    mountPath: /etc/aoai-worker
    readOnly: true
  {{- if .Values.trustedCA.configMap }}
  - name: trusted-ca
    mountPath: /etc/aoai-worker-ca
    readOnly: true
  {{- end }}
  {{- with .Values.extraVolumeMounts }}
  {{- tpl (toYaml .) $ | nindent 2 }}
  {{- end }}
{{- end }}
