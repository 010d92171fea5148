// Alerts of Azure Monitor on Service Bus' own metrics. They need no pod, no Prometheus and no KEDA. Service Bus has no
// metric of a message's age, so a queue that is never empty is used instead.

@description('Resource id of the Service Bus namespace.')
param servicebusNamespaceResourceId string

@description('Names of the jobs queues.')
param queueNames array

@description('Resource ids of the action groups to notify.')
param actionGroupResourceIds array = []

@description('Messages that may wait in a queue for an hour without one being completed.')
param activeMessages int = 0

@description('Messages allowed in a dead-letter queue.')
param deadLetteredMessages int = 0

@description('Tags of the alerts.')
param tags object = {}

var name = last(split(servicebusNamespaceResourceId, '/'))
var actions = [for id in actionGroupResourceIds: { actionGroupId: id }]
var queues = [
  {
    name: 'EntityName'
    operator: 'Include'
    values: queueNames
  }
]

resource notDraining 'Microsoft.Insights/metricAlerts@2018-03-01' = {
  name: '${name}-jobs-not-draining'
  location: 'global'
  tags: tags
  properties: {
    description: 'Messages have waited for an hour and none was completed. Runbook: AoaiWorkerQueueNotDraining.'
    severity: 1
    enabled: true
    scopes: [servicebusNamespaceResourceId]
    evaluationFrequency: 'PT15M'
    windowSize: 'PT1H'
    autoMitigate: true
    criteria: {
      'odata.type': 'Microsoft.Azure.Monitor.SingleResourceMultipleMetricCriteria'
      allOf: [
        {
          criterionType: 'StaticThresholdCriterion'
          name: 'waiting'
          metricNamespace: 'Microsoft.ServiceBus/namespaces'
          metricName: 'ActiveMessages'
          timeAggregation: 'Minimum'
          operator: 'GreaterThan'
          threshold: activeMessages
          dimensions: queues
        }
        {
          criterionType: 'StaticThresholdCriterion'
          name: 'completed'
          metricNamespace: 'Microsoft.ServiceBus/namespaces'
          metricName: 'CompleteMessage'
          timeAggregation: 'Total'
          operator: 'LessThanOrEqual'
          threshold: 0
          dimensions: queues
        }
      ]
    }
    actions: actions
  }
}

resource neverEmpty 'Microsoft.Insights/metricAlerts@2018-03-01' = {
  name: '${name}-jobs-never-empty'
  location: 'global'
  tags: tags
  properties: {
    description: 'A queue has not been empty for 6 hours. Runbook: AoaiWorkerBacklogOld.'
    severity: 2
    enabled: true
    scopes: [servicebusNamespaceResourceId]
    evaluationFrequency: 'PT15M'
    windowSize: 'PT6H'
    autoMitigate: true
    criteria: {
      'odata.type': 'Microsoft.Azure.Monitor.SingleResourceMultipleMetricCriteria'
      allOf: [
        {
          criterionType: 'StaticThresholdCriterion'
          name: 'waiting'
          metricNamespace: 'Microsoft.ServiceBus/namespaces'
          metricName: 'ActiveMessages'
          timeAggregation: 'Minimum'
          operator: 'GreaterThan'
          threshold: 0
          dimensions: queues
        }
      ]
    }
    actions: actions
  }
}

resource deadLettered 'Microsoft.Insights/metricAlerts@2018-03-01' = {
  name: '${name}-dead-letters'
  location: 'global'
  tags: tags
  properties: {
    description: 'Messages are in a dead-letter queue. Runbook: AoaiWorkerDeadLettersGrow.'
    severity: 2
    enabled: true
    scopes: [servicebusNamespaceResourceId]
    evaluationFrequency: 'PT15M'
    windowSize: 'PT30M'
    autoMitigate: true
    criteria: {
      'odata.type': 'Microsoft.Azure.Monitor.SingleResourceMultipleMetricCriteria'
      allOf: [
        {
          criterionType: 'StaticThresholdCriterion'
          name: 'dead-lettered'
          metricNamespace: 'Microsoft.ServiceBus/namespaces'
          metricName: 'DeadletteredMessages'
          timeAggregation: 'Minimum'
          operator: 'GreaterThan'
          threshold: deadLetteredMessages
          dimensions: queues
        }
      ]
    }
    actions: actions
  }
}
