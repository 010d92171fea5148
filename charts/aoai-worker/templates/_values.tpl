{{/*
What the values lead to: the worker's settings, queues, hosts and numbers of replicas. A list or a mapping is handed
over as JSON, since an `include` can return text only.
*/}}

{{/* The worker's YAML file: config without nulls, and what only the chart knows. */}}
{{- define "aoai-worker.config" -}}
{{- $config := dict -}}
{{- range $name, $value := .Values.config -}}
{{- if not (kindIs "invalid" $value) }}{{ $_ := set $config $name $value }}{{ end -}}
{{- end -}}
{{- if .Values.trustedCA.configMap }}{{ $_ := set $config "ca_file" (printf "/etc/aoai-worker-ca/%s" .Values.trustedCA.key) }}{{ end -}}
{{- if .Values.workloadIdentity.identityBinding.enabled }}{{ $_ := set $config "enable_azure_proxy" true }}{{ end -}}
{{- if not (hasKey $config "fleet_size") }}{{ $_ := set $config "fleet_size" (include "aoai-worker.maxReplicas" . | int) }}{{ end -}}
{{- toYaml $config -}}
{{- end }}

{{/*
The queues that the pods receive from, the entry queue first, as [{name, use}]; `use` is entry, model or drained. The
rule is the worker's: with one model the entry queue is its queue; with several each has a queue of its own,
<entry>-<model> unless config.queues names it; a queue that config.queues maps to null is drained.
*/}}
{{- define "aoai-worker.queues" -}}
{{- $entry := .Values.config.jobs_queue | default "jobs" -}}
{{- $uses := dict -}}
{{- if kindIs "map" .Values.config.models -}}
{{- $given := .Values.config.queues | default dict -}}
{{- if gt (len .Values.config.models) 1 -}}
{{- range keys .Values.config.models -}}
{{- if not (has . (values $given)) }}{{ $_ := set $uses (printf "%s-%s" $entry .) "model" }}{{ end -}}
{{- end -}}
{{- end -}}
{{- range $name, $model := $given }}{{ $_ := set $uses $name (ternary "drained" "model" (kindIs "invalid" $model)) }}{{ end -}}
{{- end -}}
{{- $queues := list (dict "name" $entry "use" "entry") -}}
{{- range $name := keys $uses | sortAlpha -}}
{{- if ne $name $entry }}{{ $queues = append $queues (dict "name" $name "use" (get $uses $name)) }}{{ end -}}
{{- end -}}
{{- $queues | toJson -}}
{{- end }}

{{/* Every deployment in config.models once, as {name, endpoint, tokens_per_minute, requests_per_minute}. */}}
{{- define "aoai-worker.deployments" -}}
{{- $found := dict -}}
{{- if kindIs "map" .Values.config.models -}}
{{- range $model, $deployments := .Values.config.models -}}
{{- range $deployments -}}
{{- $deployment := ternary (dict "name" .) . (kindIs "string" .) -}}
{{- $endpoint := $deployment.endpoint | default $.Values.config.openai_endpoint -}}
{{- $key := printf "%s %s" $endpoint $deployment.name -}}
{{- if not (hasKey $found $key) }}{{ $_ := set $found $key (merge (dict "endpoint" $endpoint) $deployment) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- values $found | toJson -}}
{{- end }}

{{/* Jobs a minute that the budgets of all deployments allow; empty where one has none, so nothing can be derived. */}}
{{- define "aoai-worker.jobsPerMinute" -}}
{{- $deployments := include "aoai-worker.deployments" . | fromJsonArray -}}
{{- $tokens := .Values.autoscaling.sizing.tokensPerJob -}}
{{- $total := 0.0 -}}
{{- $known := gt (len $deployments) 0 -}}
{{- range $deployments -}}
{{- $limits := list -}}
{{- with .tokens_per_minute }}{{ $limits = append $limits (divf . $tokens) }}{{ end -}}
{{- with .requests_per_minute }}{{ $limits = append $limits (float64 .) }}{{ end -}}
{{- if not $limits }}{{ $known = false -}}
{{- else if eq (len $limits) 1 }}{{ $total = addf $total (first $limits) -}}
{{- else }}{{ $total = addf $total (minf (first $limits) (last $limits)) }}{{ end -}}
{{- end -}}
{{- if $known }}{{ $total }}{{ end -}}
{{- end }}

{{/* The most pods there can be; 1 where it cannot be told, which _problems.tpl refuses. */}}
{{- define "aoai-worker.maxReplicas" -}}
{{- if eq .Values.autoscaling.mode "none" }}{{ max 1 (int .Values.replicaCount) -}}
{{- else if .Values.autoscaling.maxReplicas }}{{ int .Values.autoscaling.maxReplicas -}}
{{- else -}}
{{- $jobs := include "aoai-worker.jobsPerMinute" . | default "0" | float64 -}}
{{- $onePod := divf (mulf (.Values.config.slots | default 64) 60) .Values.autoscaling.sizing.secondsPerCall -}}
{{- max 1 (min 1000 (ceil (divf $jobs $onePod) | int)) -}}
{{- end -}}
{{- end }}

{{- define "aoai-worker.minReplicas" -}}
{{- if eq .Values.autoscaling.mode "hpa" }}{{ max 1 (int .Values.autoscaling.minReplicas) -}}
{{- else }}{{ int .Values.autoscaling.minReplicas }}{{ end -}}
{{- end }}

{{- define "aoai-worker.grace" -}}
{{- if kindIs "invalid" .Values.config.grace }}25{{ else }}{{ ceil .Values.config.grace | int }}{{ end -}}
{{- end }}

{{/* Receiving ends within 1 s, confirmations of what is handed back are waited for up to 30 s. */}}
{{- define "aoai-worker.terminationGracePeriodSeconds" -}}
{{- .Values.terminationGracePeriodSeconds | default (add (include "aoai-worker.grace" . | int) 35) | int -}}
{{- end }}

{{- define "aoai-worker.httpPort" -}}
{{- .Values.config.http_port | default 9090 | int -}}
{{- end }}

{{/* The namespace as KEDA wants it: its first label, and the cloud it is in. */}}
{{- define "aoai-worker.servicebusName" -}}
{{- splitList "." .Values.config.servicebus_namespace | first -}}
{{- end }}

{{- define "aoai-worker.kedaCloud" -}}
{{- $suffix := trimPrefix (printf "%s." (include "aoai-worker.servicebusName" .)) .Values.config.servicebus_namespace -}}
{{- $clouds := dict "servicebus.usgovcloudapi.net" "AzureUSGovernmentCloud" "servicebus.chinacloudapi.cn" "AzureChinaCloud" -}}
{{- if hasKey $clouds $suffix }}{{ dict "cloud" (get $clouds $suffix) | toYaml -}}
{{- else if ne $suffix "servicebus.windows.net" }}{{ dict "cloud" "Private" "endpointSuffix" $suffix | toYaml -}}
{{- end -}}
{{- end }}

{{- define "aoai-worker.usesQueueSink" -}}
{{- if eq (.Values.config.sink | default "blob") "queue" }}true{{ end -}}
{{- end }}

{{/* The accounts' endpoints. */}}
{{- define "aoai-worker.accounts" -}}
{{- $endpoints := list .Values.config.openai_endpoint -}}
{{- range include "aoai-worker.deployments" . | fromJsonArray }}{{ $endpoints = append $endpoints .endpoint }}{{ end -}}
{{- $endpoints | uniq | sortAlpha | toJson -}}
{{- end }}

{{/* host:port of everything the worker calls over TLS: accounts, any other https URL among the settings, Entra. */}}
{{- define "aoai-worker.httpsHosts" -}}
{{- $urls := include "aoai-worker.accounts" . | fromJsonArray -}}
{{- range $name, $value := .Values.config -}}
{{- if and (kindIs "string" $value) (ne $name "openai_scope") -}}
{{- if hasPrefix "https://" $value }}{{ $urls = append $urls $value }}{{ end -}}
{{- end -}}
{{- end -}}
{{- range prepend .Values.networkPolicy.extraHosts .Values.networkPolicy.authorityHost }}{{ $urls = append $urls (printf "https://%s" .) }}{{ end -}}
{{- $hosts := list -}}
{{- range $urls -}}
{{- $host := (urlParse .).host -}}
{{- $hosts = append $hosts (ternary $host (printf "%s:443" $host) (contains ":" $host)) -}}
{{- end -}}
{{- $hosts | uniq | sortAlpha | toJson -}}
{{- end }}

{{/* host:port of Service Bus. */}}
{{- define "aoai-worker.servicebusHost" -}}
{{- $port := ternary 443 5671 (eq (.Values.config.servicebus_transport | default "amqp") "websockets") -}}
{{- .Values.config.servicebus_endpoint | default (printf "%s:%d" .Values.config.servicebus_namespace $port) -}}
{{- end }}
