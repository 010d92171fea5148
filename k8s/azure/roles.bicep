// Every role assignment of main.bicep. They are a module because an assignment's name depends on the principal: the
// principal of a new identity is not known at the start of a deployment, but it is at the start of this one.
// setup.sh gives an assignment the same name, guid(scope-principal-role), so each may be run after the other.

// ---------------------------------------------------------------------------------------------- parameters

@description('Name of the Service Bus namespace.')
param serviceBusNamespaceName string

@description('Names of the jobs queues, the entry queue first.')
param jobsQueueNames array

@description('Name of the results queue. Empty: none.')
param resultsQueueName string

@description('Name of the storage account.')
param storageAccountName string

@description('Names of the containers.')
param containerNames array

@description('Name of the Azure OpenAI account.')
param openAIAccountName string

@description('Give the worker the custom role Azure OpenAI Inference Only in place of Cognitive Services OpenAI User.')
param inferenceOnly bool

@description('Object id of the worker\'s managed identity.')
param workerPrincipalId string

@description('Object id of KEDA\'s managed identity. Empty: none.')
param kedaPrincipalId string

@description('Object id of the producer. Empty: no roles for a producer.')
param producerPrincipalId string

@description('Type of the producer.')
param producerPrincipalType string

// ------------------------------------------------------------------------------ roles (worker/roles.py)

var serviceBusDataReceiver = '4f6d3b9b-027b-4f4c-9142-0e5a2a2247e0'
var serviceBusDataSender = '69a216fc-b8fb-44d8-bc22-1f3c2cd27a39'
var serviceBusDataOwner = '090c5cfd-751d-490a-894a-3ce6f1109419'
var openAIUser = '5e0bd9bd-7b93-4f28-af87-19fc36ad61bd'
var blobDataContributor = 'ba92f5b4-2d11-453d-a403-e96b0029c9fe'

var hasResultsQueue = !empty(resultsQueueName)
var hasProducer = !empty(producerPrincipalId)

// a resource that is not wanted is a loop over an empty list
var modelQueues = skip(jobsQueueNames, 1)
var kedaQueues = empty(kedaPrincipalId) ? [] : jobsQueueNames
var producerQueues = hasProducer ? jobsQueueNames : []
var producerContainers = hasProducer ? containerNames : []

var inferenceOnlyRoleId = guid(resourceGroup().id, 'Azure OpenAI Inference Only')
var openAIRole = inferenceOnly ? inferenceOnlyRoleId : openAIUser

// --------------------------------------------------------------------------------- what the roles are given on

resource namespace 'Microsoft.ServiceBus/namespaces@2026-01-01' existing = {
  name: serviceBusNamespaceName
}

resource jobs 'Microsoft.ServiceBus/namespaces/queues@2026-01-01' existing = [for name in jobsQueueNames: {
  parent: namespace
  name: name
}]

resource results 'Microsoft.ServiceBus/namespaces/queues@2026-01-01' existing = {
  parent: namespace
  name: empty(resultsQueueName) ? 'none' : resultsQueueName
}

resource storage 'Microsoft.Storage/storageAccounts@2026-09-01' existing = {
  name: storageAccountName
}

resource blobs 'Microsoft.Storage/storageAccounts/blobServices@2026-09-01' existing = {
  parent: storage
  name: 'default'
}

resource containers 'Microsoft.Storage/storageAccounts/blobServices/containers@2026-09-01' existing = [for name in containerNames: {
  parent: blobs
  name: name
}]

resource account 'Microsoft.CognitiveServices/accounts@2026-09-01' existing = {
  name: openAIAccountName
}

resource inferenceOnlyRole 'Microsoft.Authorization/roleDefinitions@2022-04-01' = if (inferenceOnly) {
  name: inferenceOnlyRoleId
  properties: {
    roleName: 'Azure OpenAI Inference Only (${resourceGroup().name})'
    description: 'Call the deployments of Azure OpenAI, and read nothing.'
    type: 'CustomRole'
    permissions: [
      {
        actions: []
        notActions: []
        dataActions: [
          'Microsoft.CognitiveServices/accounts/OpenAI/deployments/chat/completions/action'
          'Microsoft.CognitiveServices/accounts/OpenAI/deployments/completions/action'
          'Microsoft.CognitiveServices/accounts/OpenAI/deployments/embeddings/action'
          'Microsoft.CognitiveServices/accounts/OpenAI/responses/write'
        ]
        notDataActions: []
      }
    ]
    assignableScopes: [resourceGroup().id]
  }
}

// --------------------------------------------------------------------------------------------------- grants

resource workerReceives 'Microsoft.Authorization/roleAssignments@2022-04-01' = [for (name, i) in jobsQueueNames: {
  name: guid('${toLower(jobs[i].id)}-${workerPrincipalId}-${serviceBusDataReceiver}')
  scope: jobs[i]
  properties: {
    principalId: workerPrincipalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', serviceBusDataReceiver)
  }
}]

// jobs are moved from the entry queue, the first, to the queue of their model
resource workerSorts 'Microsoft.Authorization/roleAssignments@2022-04-01' = [for (name, i) in modelQueues: {
  name: guid('${toLower(jobs[i + 1].id)}-${workerPrincipalId}-${serviceBusDataSender}')
  scope: jobs[i + 1]
  properties: {
    principalId: workerPrincipalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', serviceBusDataSender)
  }
}]

resource workerSends 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (hasResultsQueue) {
  name: guid('${toLower(results.id)}-${workerPrincipalId}-${serviceBusDataSender}')
  scope: results
  properties: {
    principalId: workerPrincipalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', serviceBusDataSender)
  }
}

resource workerCalls 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid('${toLower(account.id)}-${workerPrincipalId}-${openAIRole}')
  scope: account
  properties: {
    principalId: workerPrincipalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', openAIRole)
  }
  dependsOn: [inferenceOnlyRole]
}

resource workerStores 'Microsoft.Authorization/roleAssignments@2022-04-01' = [for (name, i) in containerNames: {
  name: guid('${toLower(containers[i].id)}-${workerPrincipalId}-${blobDataContributor}')
  scope: containers[i]
  properties: {
    principalId: workerPrincipalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', blobDataContributor)
  }
}]

resource kedaCounts 'Microsoft.Authorization/roleAssignments@2022-04-01' = [for (name, i) in kedaQueues: {
  name: guid('${toLower(jobs[i].id)}-${kedaPrincipalId}-${serviceBusDataOwner}')
  scope: jobs[i]
  properties: {
    principalId: kedaPrincipalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', serviceBusDataOwner)
  }
}]

resource producerSubmits 'Microsoft.Authorization/roleAssignments@2022-04-01' = [for (name, i) in producerQueues: {
  name: guid('${toLower(jobs[i].id)}-${producerPrincipalId}-${serviceBusDataSender}')
  scope: jobs[i]
  properties: {
    principalId: producerPrincipalId
    principalType: producerPrincipalType
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', serviceBusDataSender)
  }
}]

resource producerAnnounces 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (hasProducer && hasResultsQueue) {
  name: guid('${toLower(results.id)}-${producerPrincipalId}-${serviceBusDataSender}')
  scope: results
  properties: {
    principalId: producerPrincipalId
    principalType: producerPrincipalType
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', serviceBusDataSender)
  }
}

resource producerCollects 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (hasProducer && hasResultsQueue) {
  name: guid('${toLower(results.id)}-${producerPrincipalId}-${serviceBusDataReceiver}')
  scope: results
  properties: {
    principalId: producerPrincipalId
    principalType: producerPrincipalType
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', serviceBusDataReceiver)
  }
}

resource producerStores 'Microsoft.Authorization/roleAssignments@2022-04-01' = [for (name, i) in producerContainers: {
  name: guid('${toLower(containers[i].id)}-${producerPrincipalId}-${blobDataContributor}')
  scope: containers[i]
  properties: {
    principalId: producerPrincipalId
    principalType: producerPrincipalType
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', blobDataContributor)
  }
}]
