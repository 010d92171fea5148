// The alerts of charts/aoai-worker/files/alerts.yaml for Azure's managed Prometheus, which reads no PrometheusRule.
// Written by `make chart`; change the rules there.

@description('Location of the rule groups: that of the Azure Monitor workspace.')
param location string = resourceGroup().location

@description('Resource id of the Azure Monitor workspace that holds the metrics.')
param workspaceResourceId string

@description('Resource id of the AKS cluster that the rules are about.')
param clusterResourceId string

@description('Resource ids of the action groups to notify.')
param actionGroupResourceIds array = []

@description('Namespace of the release in the cluster.')
param namespace string = 'aoai-worker'

@description('Name of the Deployment: the full name that the chart gives the release.')
param fullname string = 'aoai-worker'

@description('Where the runbooks are; each alert links to its section.')
param runbookBaseUrl string = 'docs/runbooks.md'

@description('Tags of the rule groups.')
param tags object = {}

var actions = [for id in actionGroupResourceIds: { actionGroupId: id }]

resource group0 'Microsoft.AlertsManagement/prometheusRuleGroups@2023-03-01' = {
  name: '${namespace}-${fullname}-keda'
  location: location
  tags: tags
  properties: {
    scopes: [
      workspaceResourceId
      clusterResourceId
    ]
    clusterName: last(split(clusterResourceId, '/'))
    enabled: true
    interval: 'PT1M'
    rules: [
      {
        record: 'aoai_worker:keda_messages:max'
        expression: 'max by (cluster, scaler, metric) ( keda_scaler_metrics_value{namespace="${namespace}", exported_namespace="", scaledObject="${fullname}", metric!="composite-metric"} or keda_scaler_metrics_value{exported_namespace="${namespace}", scaledObject="${fullname}", metric!="composite-metric"} )'
        enabled: true
        labels: {
          namespace: '${namespace}'
          release: '${fullname}'
        }
      }
      {
        record: 'aoai_worker:keda_errors:increase10m'
        expression: 'sum by (cluster) ( increase(keda_scaler_detail_errors_total{namespace="${namespace}", exported_namespace="", scaledObject="${fullname}"}[10m]) or increase(keda_scaler_detail_errors_total{exported_namespace="${namespace}", scaledObject="${fullname}"}[10m]) or increase(keda_scaled_object_errors_total{namespace="${namespace}", exported_namespace="", scaledObject="${fullname}"}[10m]) or increase(keda_scaled_object_errors_total{exported_namespace="${namespace}", scaledObject="${fullname}"}[10m]) )'
        enabled: true
        labels: {
          namespace: '${namespace}'
          release: '${fullname}'
        }
      }
      {
        alert: 'AoaiWorkerUnseen'
        expression: 'absent(aoai_worker_build_info{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?"}) unless on () aoai_worker:keda_messages:max{namespace="${namespace}", release="${fullname}"}'
        enabled: true
        severity: 2
        for: 'PT30M'
        resolveConfiguration: {
          autoResolved: true
          timeToResolve: 'PT10M'
        }
        actions: actions
        labels: {
          severity: 'warning'
          namespace: '${namespace}'
          release: '${fullname}'
        }
        annotations: {
          summary: 'The queues of ${namespace}/${fullname} are not monitored'
          description: 'For 30 minutes Prometheus has had neither metrics of a pod of ${namespace}/${fullname} nor KEDA\'s metrics of its queues. Messages may wait indefinitely, and no other alert can fire.'
          runbook_url: '${runbookBaseUrl}#aoaiworkerunseen'
        }
      }
      {
        alert: 'AoaiWorkerScalerFails'
        expression: 'aoai_worker:keda_errors:increase10m{namespace="${namespace}", release="${fullname}"} > 0'
        enabled: true
        severity: 1
        for: 'PT15M'
        resolveConfiguration: {
          autoResolved: true
          timeToResolve: 'PT10M'
        }
        actions: actions
        labels: {
          severity: 'critical'
          namespace: '${namespace}'
          release: '${fullname}'
        }
        annotations: {
          summary: 'KEDA cannot read the queues of ${namespace}/${fullname}'
          description: 'For 15 minutes KEDA could not read the length of the queues of ${namespace}/${fullname}: {{ $value | humanize }} failures within the last ten minutes. The number of pods is that of the fallback, or does not change.'
          runbook_url: '${runbookBaseUrl}#aoaiworkerscalerfails'
        }
      }
    ]
  }
}

resource group1 'Microsoft.AlertsManagement/prometheusRuleGroups@2023-03-01' = {
  name: '${namespace}-${fullname}-success'
  location: location
  tags: tags
  properties: {
    scopes: [
      workspaceResourceId
      clusterResourceId
    ]
    clusterName: last(split(clusterResourceId, '/'))
    enabled: true
    interval: 'PT1M'
    rules: [
      {
        record: 'aoai_worker:jobs_finished:increase1h'
        expression: 'sum by (cluster, namespace, queue) ( increase(aoai_worker_jobs_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?", outcome=~"answered|refused|expired|attempts_exhausted|faulted"}[1h]) or increase(aoai_worker_dead_letters_swept_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?"}[1h]) )'
        enabled: true
        labels: {
          namespace: '${namespace}'
          release: '${fullname}'
        }
      }
      {
        record: 'aoai_worker:jobs_failed:ratio_rate5m'
        expression: 'sum by (cluster, namespace, queue) ( rate(aoai_worker_jobs_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?", outcome=~"expired|attempts_exhausted|faulted"}[5m]) or rate(aoai_worker_dead_letters_swept_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?"}[5m]) ) / sum by (cluster, namespace, queue) ( rate(aoai_worker_jobs_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?", outcome=~"answered|refused|expired|attempts_exhausted|faulted"}[5m]) or rate(aoai_worker_dead_letters_swept_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?"}[5m]) )'
        enabled: true
        labels: {
          namespace: '${namespace}'
          release: '${fullname}'
        }
      }
      {
        record: 'aoai_worker:jobs_failed:ratio_rate30m'
        expression: 'sum by (cluster, namespace, queue) ( rate(aoai_worker_jobs_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?", outcome=~"expired|attempts_exhausted|faulted"}[30m]) or rate(aoai_worker_dead_letters_swept_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?"}[30m]) ) / sum by (cluster, namespace, queue) ( rate(aoai_worker_jobs_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?", outcome=~"answered|refused|expired|attempts_exhausted|faulted"}[30m]) or rate(aoai_worker_dead_letters_swept_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?"}[30m]) )'
        enabled: true
        labels: {
          namespace: '${namespace}'
          release: '${fullname}'
        }
      }
      {
        record: 'aoai_worker:jobs_failed:ratio_rate1h'
        expression: 'sum by (cluster, namespace, queue) ( rate(aoai_worker_jobs_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?", outcome=~"expired|attempts_exhausted|faulted"}[1h]) or rate(aoai_worker_dead_letters_swept_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?"}[1h]) ) / sum by (cluster, namespace, queue) ( rate(aoai_worker_jobs_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?", outcome=~"answered|refused|expired|attempts_exhausted|faulted"}[1h]) or rate(aoai_worker_dead_letters_swept_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?"}[1h]) )'
        enabled: true
        labels: {
          namespace: '${namespace}'
          release: '${fullname}'
        }
      }
      {
        record: 'aoai_worker:jobs_failed:ratio_rate2h'
        expression: 'sum by (cluster, namespace, queue) ( rate(aoai_worker_jobs_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?", outcome=~"expired|attempts_exhausted|faulted"}[2h]) or rate(aoai_worker_dead_letters_swept_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?"}[2h]) ) / sum by (cluster, namespace, queue) ( rate(aoai_worker_jobs_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?", outcome=~"answered|refused|expired|attempts_exhausted|faulted"}[2h]) or rate(aoai_worker_dead_letters_swept_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?"}[2h]) )'
        enabled: true
        labels: {
          namespace: '${namespace}'
          release: '${fullname}'
        }
      }
      {
        record: 'aoai_worker:jobs_failed:ratio_rate6h'
        expression: 'sum by (cluster, namespace, queue) ( rate(aoai_worker_jobs_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?", outcome=~"expired|attempts_exhausted|faulted"}[6h]) or rate(aoai_worker_dead_letters_swept_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?"}[6h]) ) / sum by (cluster, namespace, queue) ( rate(aoai_worker_jobs_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?", outcome=~"answered|refused|expired|attempts_exhausted|faulted"}[6h]) or rate(aoai_worker_dead_letters_swept_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?"}[6h]) )'
        enabled: true
        labels: {
          namespace: '${namespace}'
          release: '${fullname}'
        }
      }
      {
        record: 'aoai_worker:jobs_failed:ratio_rate1d'
        expression: 'sum by (cluster, namespace, queue) ( rate(aoai_worker_jobs_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?", outcome=~"expired|attempts_exhausted|faulted"}[1d]) or rate(aoai_worker_dead_letters_swept_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?"}[1d]) ) / sum by (cluster, namespace, queue) ( rate(aoai_worker_jobs_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?", outcome=~"answered|refused|expired|attempts_exhausted|faulted"}[1d]) or rate(aoai_worker_dead_letters_swept_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?"}[1d]) )'
        enabled: true
        labels: {
          namespace: '${namespace}'
          release: '${fullname}'
        }
      }
      {
        record: 'aoai_worker:jobs_failed:ratio_rate3d'
        expression: 'sum by (cluster, namespace, queue) ( rate(aoai_worker_jobs_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?", outcome=~"expired|attempts_exhausted|faulted"}[3d]) or rate(aoai_worker_dead_letters_swept_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?"}[3d]) ) / sum by (cluster, namespace, queue) ( rate(aoai_worker_jobs_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?", outcome=~"answered|refused|expired|attempts_exhausted|faulted"}[3d]) or rate(aoai_worker_dead_letters_swept_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?"}[3d]) )'
        enabled: true
        labels: {
          namespace: '${namespace}'
          release: '${fullname}'
        }
      }
    ]
  }
}

resource group2 'Microsoft.AlertsManagement/prometheusRuleGroups@2023-03-01' = {
  name: '${namespace}-${fullname}-alerts'
  location: location
  tags: tags
  properties: {
    scopes: [
      workspaceResourceId
      clusterResourceId
    ]
    clusterName: last(split(clusterResourceId, '/'))
    enabled: true
    interval: 'PT1M'
    rules: [
      {
        alert: 'AoaiWorkerErrorBudgetBurnsFast'
        expression: '( (aoai_worker:jobs_failed:ratio_rate1h{namespace="${namespace}", release="${fullname}"} > 14.4 * 0.01 and aoai_worker:jobs_failed:ratio_rate5m{namespace="${namespace}", release="${fullname}"} > 14.4 * 0.01) or (aoai_worker:jobs_failed:ratio_rate6h{namespace="${namespace}", release="${fullname}"} > 6 * 0.01 and aoai_worker:jobs_failed:ratio_rate30m{namespace="${namespace}", release="${fullname}"} > 6 * 0.01) ) and aoai_worker:jobs_finished:increase1h{namespace="${namespace}", release="${fullname}"} > 20'
        enabled: true
        severity: 1
        for: 'PT2M'
        resolveConfiguration: {
          autoResolved: true
          timeToResolve: 'PT10M'
        }
        actions: actions
        labels: {
          severity: 'critical'
          namespace: '${namespace}'
          release: '${fullname}'
        }
        annotations: {
          summary: 'Jobs of queue {{ $labels.queue }} fail far more often than the objective allows'
          description: '{{ $value | humanizePercentage }} of the jobs that finished in queue {{ $labels.queue }} of {{ $labels.namespace }} ended without an answer or in a fault. At this rate the 30-day error budget is used up within days.'
          runbook_url: '${runbookBaseUrl}#aoaiworkererrorbudgetburnsfast'
        }
      }
      {
        alert: 'AoaiWorkerErrorBudgetBurnsSlowly'
        expression: '( (aoai_worker:jobs_failed:ratio_rate1d{namespace="${namespace}", release="${fullname}"} > 3 * 0.01 and aoai_worker:jobs_failed:ratio_rate2h{namespace="${namespace}", release="${fullname}"} > 3 * 0.01) or (aoai_worker:jobs_failed:ratio_rate3d{namespace="${namespace}", release="${fullname}"} > 0.01 and aoai_worker:jobs_failed:ratio_rate6h{namespace="${namespace}", release="${fullname}"} > 0.01) ) and aoai_worker:jobs_finished:increase1h{namespace="${namespace}", release="${fullname}"} > 20'
        enabled: true
        severity: 2
        for: 'PT1H'
        resolveConfiguration: {
          autoResolved: true
          timeToResolve: 'PT10M'
        }
        actions: actions
        labels: {
          severity: 'warning'
          namespace: '${namespace}'
          release: '${fullname}'
        }
        annotations: {
          summary: 'Jobs of queue {{ $labels.queue }} fail more often than the objective allows'
          description: '{{ $value | humanizePercentage }} of the jobs that finished in queue {{ $labels.queue }} of {{ $labels.namespace }} over a day or longer ended without an answer or in a fault.'
          runbook_url: '${runbookBaseUrl}#aoaiworkererrorbudgetburnsslowly'
        }
      }
      {
        alert: 'AoaiWorkerQueueNotDraining'
        expression: '( sum by (cluster, namespace) ( aoai_worker:keda_messages:max{namespace="${namespace}", release="${fullname}"} ) > 0 or sum by (cluster, namespace) (aoai_worker_jobs_in_flight{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?"}) > 0 ) unless on (cluster, namespace) ( sum by (cluster, namespace) (rate(aoai_worker_jobs_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?", outcome=~"answered|refused|expired|attempts_exhausted|faulted|dead_lettered"}[10m])) > 0 )'
        enabled: true
        severity: 1
        for: 'PT20M'
        resolveConfiguration: {
          autoResolved: true
          timeToResolve: 'PT10M'
        }
        actions: actions
        labels: {
          severity: 'critical'
          namespace: '${namespace}'
          release: '${fullname}'
        }
        annotations: {
          summary: 'Messages wait in {{ $labels.namespace }} and no job finishes'
          description: 'No job has ended in namespace {{ $labels.namespace }} for half an hour, but {{ $value | humanize }} messages wait or are in flight.'
          runbook_url: '${runbookBaseUrl}#aoaiworkerqueuenotdraining'
        }
      }
      {
        alert: 'AoaiWorkerBacklogOld'
        expression: 'max by (cluster, namespace, queue) (aoai_worker_backlog_age_seconds{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?"}) > 14400'
        enabled: true
        severity: 2
        for: 'PT15M'
        resolveConfiguration: {
          autoResolved: true
          timeToResolve: 'PT10M'
        }
        actions: actions
        labels: {
          severity: 'warning'
          namespace: '${namespace}'
          release: '${fullname}'
        }
        annotations: {
          summary: 'Jobs in queue {{ $labels.queue }} wait too long'
          description: 'The last message received from queue {{ $labels.queue }} of {{ $labels.namespace }} was {{ $value | humanizeDuration }} old. Jobs without their own deadline expire after 24 hours by default.'
          runbook_url: '${runbookBaseUrl}#aoaiworkerbacklogold'
        }
      }
      {
        alert: 'AoaiWorkerEntryQueueNotSorted'
        expression: 'max by (cluster, namespace) (aoai_worker_intake_closed{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?", reason="sorting"}) == 1 or ( max by (cluster, namespace) (aoai_worker:keda_messages:max{namespace="${namespace}", release="${fullname}", scaler="q0"}) > 0 unless on (cluster, namespace) sum by (cluster, namespace) (increase(aoai_worker_jobs_sorted_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?"}[10m])) > 0 )'
        enabled: true
        severity: 1
        for: 'PT15M'
        resolveConfiguration: {
          autoResolved: true
          timeToResolve: 'PT10M'
        }
        actions: actions
        labels: {
          severity: 'critical'
          namespace: '${namespace}'
          release: '${fullname}'
        }
        annotations: {
          summary: 'Jobs stay in the entry queue of {{ $labels.namespace }}'
          description: 'For 15 minutes a pod of {{ $labels.namespace }} could not sort the entry queue, or jobs waited there and none was moved to the queue of its model. Jobs in the queues of models are processed as usual.'
          runbook_url: '${runbookBaseUrl}#aoaiworkerentryqueuenotsorted'
        }
      }
      {
        alert: 'AoaiWorkerModelQueueRefuses'
        expression: 'sum by (cluster, namespace, queue) (increase(aoai_worker_sort_failures_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?"}[15m])) > 5'
        enabled: true
        severity: 2
        for: 'PT5M'
        resolveConfiguration: {
          autoResolved: true
          timeToResolve: 'PT10M'
        }
        actions: actions
        labels: {
          severity: 'warning'
          namespace: '${namespace}'
          release: '${fullname}'
        }
        annotations: {
          summary: 'Jobs cannot be moved to queue {{ $labels.queue }}'
          description: 'Queue {{ $labels.queue }} of {{ $labels.namespace }} did not accept {{ $value | humanize }} batches of jobs within 15 minutes: it is full, missing or disabled, or the worker lacks a role. A pod that holds 1,000 jobs for it stops sorting for all models.'
          runbook_url: '${runbookBaseUrl}#aoaiworkermodelqueuerefuses'
        }
      }
      {
        alert: 'AoaiWorkerDeadLettersGrow'
        expression: 'sum by (cluster, namespace, queue) (increase(aoai_worker_jobs_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?", outcome="dead_lettered"}[1h])) > 5'
        enabled: true
        severity: 2
        for: 'PT5M'
        resolveConfiguration: {
          autoResolved: true
          timeToResolve: 'PT10M'
        }
        actions: actions
        labels: {
          severity: 'warning'
          namespace: '${namespace}'
          release: '${fullname}'
        }
        annotations: {
          summary: 'Messages of queue {{ $labels.queue }} are dead-lettered'
          description: '{{ $value | humanize }} messages of queue {{ $labels.queue }} in {{ $labels.namespace }} were dead-lettered within an hour, because they are not jobs.'
          runbook_url: '${runbookBaseUrl}#aoaiworkerdeadlettersgrow'
        }
      }
      {
        alert: 'AoaiWorkerTokenRefreshFails'
        expression: 'sum by (cluster, namespace, pod, scope) (increase(aoai_worker_token_refreshes_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?", outcome="failed"}[15m])) > 0 unless sum by (cluster, namespace, pod, scope) (increase(aoai_worker_token_refreshes_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?", outcome="ok"}[15m])) > 0'
        enabled: true
        severity: 2
        for: 'PT5M'
        resolveConfiguration: {
          autoResolved: true
          timeToResolve: 'PT10M'
        }
        actions: actions
        labels: {
          severity: 'warning'
          namespace: '${namespace}'
          release: '${fullname}'
        }
        annotations: {
          summary: 'Requests for a token for {{ $labels.scope }} fail'
          description: 'Token requests of {{ $labels.namespace }}/{{ $labels.pod }} for {{ $labels.scope }} have failed for 15 minutes. The pod uses the last token as long as it is valid.'
          runbook_url: '${runbookBaseUrl}#aoaiworkertokenrefreshfails'
        }
      }
      {
        alert: 'AoaiWorkerTokenExpiresSoon'
        expression: 'min by (cluster, namespace, pod, scope) (aoai_worker_token_expiry_timestamp_seconds{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?"}) - time() < 600'
        enabled: true
        severity: 1
        for: 'PT1M'
        resolveConfiguration: {
          autoResolved: true
          timeToResolve: 'PT10M'
        }
        actions: actions
        labels: {
          severity: 'critical'
          namespace: '${namespace}'
          release: '${fullname}'
        }
        annotations: {
          summary: 'The token for {{ $labels.scope }} expires within 10 minutes'
          description: 'The token of {{ $labels.namespace }}/{{ $labels.pod }} for {{ $labels.scope }} expires in {{ $value | humanizeDuration }} and was not refreshed. Normally it is refreshed after half of its lifetime. When it expires, the pod stops receiving jobs.'
          runbook_url: '${runbookBaseUrl}#aoaiworkertokenexpiressoon'
        }
      }
      {
        alert: 'AoaiWorkerGateClosedLong'
        expression: 'avg by (cluster, namespace, deployment) (avg_over_time(aoai_worker_gate_open{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?"}[30m])) < 0.2 and on (cluster, namespace) sum by (cluster, namespace) (aoai_worker_jobs_in_flight{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?"}) > 0'
        enabled: true
        severity: 2
        for: 'PT15M'
        resolveConfiguration: {
          autoResolved: true
          timeToResolve: 'PT10M'
        }
        actions: actions
        labels: {
          severity: 'warning'
          namespace: '${namespace}'
          release: '${fullname}'
        }
        annotations: {
          summary: 'Deployment {{ $labels.deployment }} was closed for most of half an hour'
          description: 'The gates of deployment {{ $labels.deployment }} in {{ $labels.namespace }} were open for {{ $value | humanizePercentage }} of the last 30 minutes, while jobs were in flight.'
          runbook_url: '${runbookBaseUrl}#aoaiworkergateclosedlong'
        }
      }
      {
        alert: 'AoaiWorkerLocksLost'
        expression: 'sum by (cluster, namespace) (increase(aoai_worker_locks_lost_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?"}[30m])) > 3'
        enabled: true
        severity: 2
        for: 'PT5M'
        resolveConfiguration: {
          autoResolved: true
          timeToResolve: 'PT10M'
        }
        actions: actions
        labels: {
          severity: 'warning'
          namespace: '${namespace}'
          release: '${fullname}'
        }
        annotations: {
          summary: 'Locks of messages are lost in {{ $labels.namespace }}'
          description: '{{ $value | humanize }} locks were lost within 30 minutes in {{ $labels.namespace }}. Each lost lock cancels a call that may already be charged.'
          runbook_url: '${runbookBaseUrl}#aoaiworkerlockslost'
        }
      }
      {
        alert: 'AoaiWorkerReceiversRestart'
        expression: 'sum by (cluster, namespace, pod, queue) (increase(aoai_worker_receiver_restarts_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?"}[30m])) > 5'
        enabled: true
        severity: 2
        for: 'PT5M'
        resolveConfiguration: {
          autoResolved: true
          timeToResolve: 'PT10M'
        }
        actions: actions
        labels: {
          severity: 'warning'
          namespace: '${namespace}'
          release: '${fullname}'
        }
        annotations: {
          summary: 'The receiver of queue {{ $labels.queue }} restarts repeatedly'
          description: '{{ $labels.namespace }}/{{ $labels.pod }} replaced its receiver of queue {{ $labels.queue }} {{ $value | humanize }} times within 30 minutes.'
          runbook_url: '${runbookBaseUrl}#aoaiworkerreceiversrestart'
        }
      }
      {
        alert: 'AoaiWorkerSetupWrong'
        expression: 'max by (cluster, namespace, pod) (aoai_worker_intake_closed{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?", reason=~"start-up|setup"}) == 1'
        enabled: true
        severity: 1
        for: 'PT10M'
        resolveConfiguration: {
          autoResolved: true
          timeToResolve: 'PT10M'
        }
        actions: actions
        labels: {
          severity: 'critical'
          namespace: '${namespace}'
          release: '${fullname}'
        }
        annotations: {
          summary: '{{ $labels.pod }} receives no jobs: an identity, role, queue or deployment is wrong'
          description: 'Pod {{ $labels.namespace }}/{{ $labels.pod }} has been unready for 10 minutes: the start-up check of a token, a queue or a deployment failed, or calls failed later.'
          runbook_url: '${runbookBaseUrl}#aoaiworkersetupwrong'
        }
      }
      {
        alert: 'AoaiWorkerSinkDown'
        expression: 'max by (cluster, namespace, pod) (aoai_worker_intake_closed{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?", reason="sink"}) == 1'
        enabled: true
        severity: 1
        for: 'PT5M'
        resolveConfiguration: {
          autoResolved: true
          timeToResolve: 'PT10M'
        }
        actions: actions
        labels: {
          severity: 'critical'
          namespace: '${namespace}'
          release: '${fullname}'
        }
        annotations: {
          summary: 'Pod {{ $labels.pod }} cannot write results'
          description: 'Pod {{ $labels.namespace }}/{{ $labels.pod }} holds answers that it cannot write, and receives no jobs until it can.'
          runbook_url: '${runbookBaseUrl}#aoaiworkersinkdown'
        }
      }
      {
        alert: 'AoaiWorkerSourceDown'
        expression: 'max by (cluster, namespace, pod) (aoai_worker_intake_closed{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?", reason=~"source|claims"}) == 1'
        enabled: true
        severity: 1
        for: 'PT10M'
        resolveConfiguration: {
          autoResolved: true
          timeToResolve: 'PT10M'
        }
        actions: actions
        labels: {
          severity: 'critical'
          namespace: '${namespace}'
          release: '${fullname}'
        }
        annotations: {
          summary: '{{ $labels.pod }} cannot read jobs'
          description: 'Pod {{ $labels.namespace }}/{{ $labels.pod }} could not read the jobs queue, or the storage that holds large jobs, for 10 minutes.'
          runbook_url: '${runbookBaseUrl}#aoaiworkersourcedown'
        }
      }
      {
        alert: 'AoaiWorkerPaidTwice'
        expression: 'sum by (cluster, namespace, queue) (increase(aoai_worker_jobs_paid_twice_total{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?"}[1h])) > 5'
        enabled: true
        severity: 2
        for: 'PT5M'
        resolveConfiguration: {
          autoResolved: true
          timeToResolve: 'PT10M'
        }
        actions: actions
        labels: {
          severity: 'warning'
          namespace: '${namespace}'
          release: '${fullname}'
        }
        annotations: {
          summary: 'Answers for queue {{ $labels.queue }} are paid for twice'
          description: 'Within an hour {{ $value | humanize }} jobs of queue {{ $labels.queue }} in {{ $labels.namespace }} were answered although their result was already written.'
          runbook_url: '${runbookBaseUrl}#aoaiworkerpaidtwice'
        }
      }
      {
        alert: 'AoaiWorkerAtMaxReplicas'
        expression: '( kube_horizontalpodautoscaler_status_current_replicas{namespace="${namespace}", horizontalpodautoscaler=~"(keda-hpa-)?${fullname}"} >= kube_horizontalpodautoscaler_spec_max_replicas{namespace="${namespace}", horizontalpodautoscaler=~"(keda-hpa-)?${fullname}"} ) and on (cluster, namespace) max by (cluster, namespace) (aoai_worker_backlog_age_seconds{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?"}) > 900'
        enabled: true
        severity: 2
        for: 'PT30M'
        resolveConfiguration: {
          autoResolved: true
          timeToResolve: 'PT10M'
        }
        actions: actions
        labels: {
          severity: 'warning'
          namespace: '${namespace}'
          release: '${fullname}'
        }
        annotations: {
          summary: '{{ $labels.horizontalpodautoscaler }} is at its maximum and jobs still wait'
          description: '{{ $labels.namespace }}/{{ $labels.horizontalpodautoscaler }} has run its maximum of {{ $value }} pods for 30 minutes, and jobs wait longer than 15 minutes.'
          runbook_url: '${runbookBaseUrl}#aoaiworkeratmaxreplicas'
        }
      }
      {
        alert: 'AoaiWorkerAbsent'
        expression: 'sum by (cluster, namespace) (kube_deployment_spec_replicas{namespace="${namespace}", deployment="${fullname}"}) > 0 unless on (cluster, namespace) count by (cluster, namespace) (aoai_worker_build_info{namespace="${namespace}", pod=~"${fullname}-[a-z0-9]+(-[a-z0-9]+)?"})'
        enabled: true
        severity: 1
        for: 'PT15M'
        resolveConfiguration: {
          autoResolved: true
          timeToResolve: 'PT10M'
        }
        actions: actions
        labels: {
          severity: 'critical'
          namespace: '${namespace}'
          release: '${fullname}'
        }
        annotations: {
          summary: 'No worker of {{ $labels.namespace }}/${fullname} is scraped'
          description: '{{ $value }} pods of {{ $labels.namespace }}/${fullname} should run, but Prometheus has had no metrics of any of them for 15 minutes. No other alert can fire meanwhile.'
          runbook_url: '${runbookBaseUrl}#aoaiworkerabsent'
        }
      }
    ]
  }
}
