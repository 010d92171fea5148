{{/*
What stands in the way of an installation, all of it at once: what is missing, how to find it, or which two values
contradict each other. The schema has already refused what is wrong in itself.
*/}}

{{- define "aoai-worker.problems" -}}
{{- $problems := concat (include "aoai-worker.missing" . | fromJsonArray) (include "aoai-worker.contradictions" . | fromJsonArray) -}}
{{- if $problems -}}
{{- fail (printf "\n\nThese values do not make a worker yet:\n%s\n" (join "\n" $problems)) -}}
{{- end -}}
{{- end }}

{{- define "aoai-worker.missing" -}}
{{- $missing := list -}}
{{- if not .Values.image.registry -}}
{{- $missing = append $missing "- image.registry is missing: the registry that holds the image, such as myregistry.azurecr.io. Find it with\n    az acr list --query '[].loginServer' -o tsv" -}}
{{- end -}}
{{- if not .Values.config.servicebus_namespace -}}
{{- $missing = append $missing "- config.servicebus_namespace is missing: the namespace's host name, such as my-namespace.servicebus.windows.net. Find it with\n    az servicebus namespace list --query '[].serviceBusEndpoint' -o tsv" -}}
{{- end -}}
{{- if not .Values.config.openai_endpoint -}}
{{- $missing = append $missing "- config.openai_endpoint is missing: the account's endpoint, such as https://my-account.openai.azure.com. Find it with\n    az cognitiveservices account list --query \"[?kind=='OpenAI' || kind=='AIServices'].properties.endpoint\" -o tsv" -}}
{{- end -}}
{{- if not .Values.config.models -}}
{{- $missing = append $missing "- config.models is missing: the models that jobs may ask for, such as {gpt-5.4-mini: [my-deployment]}, or passthrough. Find the deployments with\n    az cognitiveservices account deployment list -g RESOURCE_GROUP -n ACCOUNT --query '[].{model:properties.model.name, deployment:name, capacity:sku.capacity}' -o table" -}}
{{- end -}}
{{- if and (not (include "aoai-worker.usesQueueSink" .)) (not .Values.config.blob_container) -}}
{{- $missing = append $missing "- config.blob_container is missing: the URL of the container of results, such as https://my-account.blob.core.windows.net/results. Find it with\n    az storage account list --query '[].primaryEndpoints.blob' -o tsv\n  or send results to the results queue: config.sink=queue" -}}
{{- end -}}
{{- if and (include "aoai-worker.usesWorkloadIdentity" .) (not .Values.workloadIdentity.clientId) .Values.serviceAccount.create -}}
{{- $missing = append $missing "- workloadIdentity.clientId is missing: the client id of the worker's managed identity. Find it with\n    az identity show -g RESOURCE_GROUP -n IDENTITY --query clientId -o tsv" -}}
{{- end -}}
{{- if and (not .Values.serviceAccount.create) (not .Values.serviceAccount.name) -}}
{{- $missing = append $missing "- serviceAccount.name is missing: serviceAccount.create is false, so name the service account that has the annotation azure.workload.identity/client-id. Find it with\n    kubectl get serviceaccounts -n NAMESPACE -o yaml" -}}
{{- end -}}
{{- if and .Values.workloadIdentity.identityBinding.enabled .Values.workloadIdentity.identityBinding.createRbac (not .Values.workloadIdentity.clientId) (not .Values.serviceAccount.create) -}}
{{- $missing = append $missing "- workloadIdentity.clientId is missing: the role of an identity binding names it. Set it, or workloadIdentity.identityBinding.createRbac: false" -}}
{{- end -}}
{{- if and (eq .Values.autoscaling.mode "keda") (not .Values.autoscaling.keda.identityId) (not .Values.autoscaling.keda.authenticationRef.name) -}}
{{- $missing = append $missing "- autoscaling.keda.identityId is missing: the client id of the identity with which KEDA reads the queues' length; not the worker's, which must not manage queues. Find it with\n    az identity show -g RESOURCE_GROUP -n KEDA_IDENTITY --query clientId -o tsv\n  or scale otherwise: autoscaling.mode=hpa or none" -}}
{{- end -}}
{{- if and (ne .Values.autoscaling.mode "none") (not .Values.autoscaling.maxReplicas) .Values.config.models (not (include "aoai-worker.jobsPerMinute" .)) -}}
{{- $missing = append $missing "- autoscaling.maxReplicas is missing and cannot be worked out, because not every deployment in config.models has tokens_per_minute or requests_per_minute. Set it, or the budgets, which are found with\n    az cognitiveservices account deployment show -g RESOURCE_GROUP -n ACCOUNT --deployment-name DEPLOYMENT --query properties.rateLimits" -}}
{{- end -}}
{{- $missing = concat $missing (include "aoai-worker.missingResources" . | fromJsonArray) -}}
{{- toJson $missing -}}
{{- end }}

{{/*
Kinds that the cluster does not have. Without a cluster, as in `helm template`, Helm knows groups and no kinds, and
nothing can be said.
*/}}
{{- define "aoai-worker.missingResources" -}}
{{- $missing := list -}}
{{- $monitoring := .Values.monitoring -}}
{{- $scrapes := printf "%s/PodMonitor" $monitoring.podMonitor.apiVersion -}}
{{- $managed := eq $monitoring.podMonitor.apiVersion "azmonitoring.coreos.com/v1" -}}
{{- $prometheus := ternary "az aks update -g RESOURCE_GROUP -n CLUSTER --enable-azure-monitor-metrics" "the Prometheus operator, or on managed Prometheus set monitoring.podMonitor.apiVersion to azmonitoring.coreos.com/v1" $managed -}}
{{- $wanted := list
    (list (eq .Values.autoscaling.mode "keda") "keda.sh/v1alpha1/ScaledObject" "autoscaling.mode is keda" "az aks update -g RESOURCE_GROUP -n CLUSTER --enable-keda" "autoscaling.mode=hpa or none")
    (list $monitoring.podMonitor.enabled $scrapes "monitoring.podMonitor.enabled is true" $prometheus "monitoring.podMonitor.enabled=false")
    (list $monitoring.kedaPodMonitor.enabled $scrapes "monitoring.kedaPodMonitor.enabled is true" $prometheus "monitoring.kedaPodMonitor.enabled=false")
    (list $monitoring.prometheusRule.enabled "monitoring.coreos.com/v1/PrometheusRule" "monitoring.prometheusRule.enabled is true" "the Prometheus operator" "monitoring.prometheusRule.enabled=false, and deploy k8s/azure/alerts.bicep")
    (list (eq .Values.networkPolicy.mode "cilium") "cilium.io/v2/CiliumNetworkPolicy" "networkPolicy.mode is cilium" "Azure CNI powered by Cilium" "networkPolicy.mode=kubernetes or none") -}}
{{- if .Capabilities.APIVersions.Has "apps/v1/Deployment" -}}
{{- range $wanted -}}
{{- if and (index . 0) (not ($.Capabilities.APIVersions.Has (index . 1))) -}}
{{- $missing = append $missing (printf "- %s, and the cluster has no %s. Install it:\n    %s\n  or do without: %s" (index . 2) (index . 1) (index . 3) (index . 4)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $missing -}}
{{- end }}

{{- define "aoai-worker.contradictions" -}}
{{- $problems := list -}}
{{- $grace := include "aoai-worker.grace" . | int -}}
{{- $ending := include "aoai-worker.terminationGracePeriodSeconds" . | int -}}
{{- if lt $ending (add $grace 5 | int) -}}
{{- $problems = append $problems (printf "- terminationGracePeriodSeconds is %d, config.grace %d: the kubelet would kill the pod before it has handed back its jobs. Set it to %d or more, or to null to have it worked out" $ending $grace (add $grace 5)) -}}
{{- end -}}
{{- if ne .Values.autoscaling.mode "none" -}}
{{- $least := include "aoai-worker.minReplicas" . | int -}}
{{- $most := include "aoai-worker.maxReplicas" . | int -}}
{{- if gt $least $most -}}
{{- $problems = append $problems (printf "- autoscaling.minReplicas is %d, above the most pods there can be, %d (autoscaling.maxReplicas, or worked out from the budgets). Lower the one or raise the other" $least $most) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.workloadIdentity.identityBinding.enabled (not (has (.Values.config.credential | default "auto") (list "workload" "auto"))) -}}
{{- $problems = append $problems (printf "- workloadIdentity.identityBinding.enabled needs config.credential workload, and it is %s" .Values.config.credential) -}}
{{- end -}}
{{- $problems = concat $problems (include "aoai-worker.clashes" . | fromJsonArray) -}}
{{- $keda := .Values.autoscaling.keda -}}
{{- if eq .Values.autoscaling.mode "keda" -}}
{{- if and (not (kindIs "invalid" $keda.idleReplicaCount)) (lt (int .Values.autoscaling.minReplicas) 1) -}}
{{- $problems = append $problems "- autoscaling.keda.idleReplicaCount is 0 and autoscaling.minReplicas is 0 as well, which KEDA refuses. Leave the first out: with no messages there are no pods anyway" -}}
{{- end -}}
{{- if and $keda.extraTriggers (not $keda.formula) (gt (len (include "aoai-worker.queues" . | fromJsonArray)) 1) -}}
{{- $problems = append $problems "- autoscaling.keda.extraTriggers is set, and with several queues KEDA scales on a formula that does not name it. Set autoscaling.keda.formula, such as \"max(q0 + q1, morning * 64)\"" -}}
{{- end -}}
{{- end -}}
{{- $problems = concat $problems (include "aoai-worker.queueProblems" . | fromJsonArray) -}}
{{- if and .Values.trustedCA.configMap .Values.config.ca_file -}}
{{- $problems = append $problems "- trustedCA.configMap and config.ca_file are both set: keep one. The first mounts the file and sets the second" -}}
{{- end -}}
{{- toJson $problems -}}
{{- end }}

{{/* Names and paths that are the chart's own. Kubernetes would refuse them, or take one of the two. */}}
{{- define "aoai-worker.clashes" -}}
{{- $problems := list -}}
{{- $variables := list "AOAI_WORKER_CONFIG" -}}
{{- if include "aoai-worker.usesWorkloadIdentity" . -}}
{{- $variables = concat $variables (list "AZURE_CLIENT_ID" "AZURE_TENANT_ID" "AZURE_FEDERATED_TOKEN_FILE") -}}
{{- else if .Values.workloadIdentity.clientId -}}
{{- $variables = append $variables "AZURE_CLIENT_ID" -}}
{{- end -}}
{{- range .Values.extraEnv -}}
{{- $setting := eq .name "AZURE_OPENAI_ENDPOINT" | ternary "openai_endpoint" (trimPrefix "AOAI_WORKER_" .name | lower) -}}
{{- if and (regexMatch "^(AOAI_WORKER_|AZURE_OPENAI_ENDPOINT$)" .name) (or (hasKey $.Values.config $setting) (eq $setting "jobs_queue")) -}}
{{- $problems = append $problems (printf "- extraEnv has %s, which wins over config.%s in the worker, and the chart works with the latter. Set config.%s" .name $setting $setting) -}}
{{- end -}}
{{- end -}}
{{- $own := list
    (list "extraEnv" "name" $variables)
    (list "extraVolumes" "name" (list "config" "trusted-ca"))
    (list "extraVolumeMounts" "mountPath" (list "/etc/aoai-worker" "/etc/aoai-worker-ca"))
    (list "extraContainers" "name" (list "worker"))
    (list "initContainers" "name" (list "worker")) -}}
{{- range $own -}}
{{- $value := index . 0 -}}
{{- $key := index . 1 -}}
{{- $names := index . 2 -}}
{{- range index $.Values $value -}}
{{- if has (get . $key | trimSuffix "/") $names -}}
{{- $problems = append $problems (printf "- %s has one with the %s %s, which is the chart's own. Take another" $value $key (get . $key)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $problems -}}
{{- end }}

{{/* What the worker would refuse at its start: queues that are not one for each model. */}}
{{- define "aoai-worker.queueProblems" -}}
{{- $problems := list -}}
{{- $models := .Values.config.models -}}
{{- $given := .Values.config.queues | default dict -}}
{{- $entry := .Values.config.jobs_queue | default "jobs" -}}
{{- if and $given (eq (toString $models) "passthrough") -}}
{{- $problems = append $problems "- config.queues is set and config.models is passthrough, which works the entry queue only. Leave config.queues out, or list the models" -}}
{{- else if kindIs "map" $models -}}
{{- range $queue, $model := $given -}}
{{- if and $model (not (hasKey $models $model)) -}}
{{- $problems = append $problems (printf "- config.queues.%s names the model %s, which config.models does not have; there are %s" $queue $model (keys $models | sortAlpha | join ", ")) -}}
{{- end -}}
{{- if and (eq $queue $entry) (or (not $model) (gt (len $models) 1)) -}}
{{- $problems = append $problems (printf "- config.queues.%s is the entry queue, config.jobs_queue, from which the jobs of all models are sorted. Give that model another queue, or leave it out" $queue) -}}
{{- end -}}
{{- end -}}
{{- $seen := dict -}}
{{- range $queue := include "aoai-worker.queues" . | fromJsonArray -}}
{{- $name := $queue.name -}}
{{- if not (or (hasKey $given $name) (eq $name $entry) (regexMatch "^[A-Za-z0-9._-]{1,260}$" $name)) -}}
{{- $problems = append $problems (printf "- the queue %s, named after its model, is longer than 260 or has other characters than letters, digits and . _ -: name it in config.queues, such as {%s-2: %s}" $name $entry (trimPrefix (printf "%s-" $entry) $name)) -}}
{{- end -}}
{{- with get $seen (lower $name) -}}
{{- $problems = append $problems (printf "- the queues %s and %s are one queue to Service Bus, which does not tell upper case from lower case: name one of them differently in config.queues" . $name) -}}
{{- end -}}
{{- $_ := set $seen (lower $name) $name -}}
{{- end -}}
{{- end -}}
{{- toJson $problems -}}
{{- end }}
