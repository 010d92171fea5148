// The Azure side of the worker: two identities, Service Bus, storage, an Azure OpenAI account, and the smallest roles.
// Parameters are named as in Azure Verified Modules; the resources are written out, so that every property that the
// worker relies on can be read here. Keys are switched off on everything that has them.
//
//   az deployment group create -g RESOURCE_GROUP -f main.bicep -p main.bicepparam

targetScope = 'resourceGroup'

// ---------------------------------------------------------------------------------------------- parameters

@description('Location of all resources.')
param location string = resourceGroup().location

@description('Tags of all resources.')
param tags object = {}

@description('Name of the worker\'s managed identity.')
param workerIdentityName string = 'aoai-worker'

@description('Name of the managed identity with which KEDA reads the queues\' length. Empty: none, and no role for it.')
param kedaIdentityName string = 'aoai-worker-keda'

@description('OIDC issuer of the cluster: az aks show --query oidcIssuerProfile.issuerUrl.')
param clusterIssuerUrl string

@description('Service account of the worker, as namespace:name.')
param workerServiceAccount string = 'aoai-worker:aoai-worker'

@description('Service account of KEDA\'s operator, as namespace:name. The AKS add-on has the default.')
param kedaServiceAccount string = 'kube-system:keda-operator'

@description('Name of the Service Bus namespace, unique in Azure.')
@minLength(6)
@maxLength(50)
param serviceBusNamespaceName string

@description('Tier of the namespace. Basic has neither sessions nor duplicate detection.')
@allowed(['Standard', 'Premium'])
param serviceBusSku string = 'Standard'

@description('Names of the jobs queues: the entry queue, then with several models the queue of each, such as jobs-gpt-5.4.')
@minLength(1)
param jobsQueueNames array = ['jobs']

@description('Name of the results queue, for the queue sink. Empty: none, as results are blobs.')
param resultsQueueName string = ''

@description('Name of the storage account for results and large jobs, unique in Azure: lower-case letters and digits.')
@minLength(3)
@maxLength(24)
param storageAccountName string

@description('Names of the containers. The first is that of results; large jobs lie there too, unless claims_container says otherwise.')
@minLength(1)
param containerNames array = ['results']

@description('Days after which results are deleted. 0: never.')
@minValue(0)
param keepResultsDays int = 0

@description('Days after which large jobs are deleted. Longer than any job waits.')
@minValue(2)
param keepClaimsDays int = 30

@description('Name of the Azure OpenAI account in this resource group.')
param openAIAccountName string

@description('Create the account. False: it is there already, and only the role is given.')
param createOpenAIAccount bool = true

@description('Deployments to create: {name, model, version, sku, capacity}; capacity counts 1,000 tokens a minute.')
param deployments array = []

@description('Give the worker the custom role Azure OpenAI Inference Only in place of Cognitive Services OpenAI User.')
param inferenceOnly bool = false

@description('Object id of whoever submits and collects: a group, a user, a service principal. Empty: nobody.')
param producerPrincipalId string = ''

@description('Its type.')
@allowed(['Group', 'User', 'ServicePrincipal'])
param producerPrincipalType string = 'Group'

// ------------------------------------------------------------------------------ roles (worker/roles.py)

var serviceBusDataReceiver = '4f6d3b9b-027b-4f4c-9142-0e5a2a2247e0'
var serviceBusDataSender = '69a216fc-b8fb-44d8-bc22-1f3c2cd27a39'
var serviceBusDataOwner = '090c5cfd-751d-490a-894a-3ce6f1109419'
var openAIUser = '5e0bd9bd-7b93-4f28-af87-19fc36ad61bd'
var blobDataContributor = 'ba92f5b4-2d11-453d-a403-e96b0029c9fe'

var audience = 'api://AzureADTokenExchange'
var hasKeda = !empty(kedaIdentityName)
var hasResultsQueue = !empty(resultsQueueName)
var hasProducer = !empty(producerPrincipalId)

// what is not wanted is a loop over nothing
var modelQueues = skip(jobsQueueNames, 1)
var kedaQueues = hasKeda ? jobsQueueNames : []
var producerQueues = hasProducer ? jobsQueueNames : []
var producerContainers = hasProducer ? containerNames : []

// ---------------------------------------------------------------------------------------------- identities

resource worker 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' = {
  name: workerIdentityName
  location: location
  tags: tags
}

resource workerCredential 'Microsoft.ManagedIdentity/userAssignedIdentities/federatedIdentityCredentials@2023-01-31' = {
  parent: worker
  name: 'aoai-worker'
  properties: {
    issuer: clusterIssuerUrl
    subject: 'system:serviceaccount:${workerServiceAccount}'
    audiences: [audience]
  }
}

resource keda 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' = if (hasKeda) {
  name: empty(kedaIdentityName) ? 'none' : kedaIdentityName
  location: location
  tags: tags
}

resource kedaCredential 'Microsoft.ManagedIdentity/userAssignedIdentities/federatedIdentityCredentials@2023-01-31' = if (hasKeda) {
  parent: keda
  name: 'keda-operator'
  properties: {
    issuer: clusterIssuerUrl
    subject: 'system:serviceaccount:${kedaServiceAccount}'
    audiences: [audience]
  }
}

// --------------------------------------------------------------------------------------------- Service Bus

resource namespace 'Microsoft.ServiceBus/namespaces@2024-01-01' = {
  name: serviceBusNamespaceName
  location: location
  tags: tags
  sku: {
    name: serviceBusSku
    tier: serviceBusSku
  }
  properties: {
    disableLocalAuth: true
    minimumTlsVersion: '1.2'
  }
}

resource jobs 'Microsoft.ServiceBus/namespaces/queues@2024-01-01' = [for name in jobsQueueNames: {
  parent: namespace
  name: name
  properties: {
    lockDuration: 'PT5M'
    maxDeliveryCount: 20
    requiresDuplicateDetection: true
    duplicateDetectionHistoryTimeWindow: 'P1D'
    requiresSession: false
    enablePartitioning: false
    deadLetteringOnMessageExpiration: true
    maxSizeInMegabytes: 5120
  }
}]

resource results 'Microsoft.ServiceBus/namespaces/queues@2024-01-01' = if (hasResultsQueue) {
  parent: namespace
  name: empty(resultsQueueName) ? 'none' : resultsQueueName
  properties: {
    lockDuration: 'PT5M'
    maxDeliveryCount: 20
    requiresDuplicateDetection: true
    duplicateDetectionHistoryTimeWindow: 'P1D'
    requiresSession: true
    enablePartitioning: false
    deadLetteringOnMessageExpiration: true
    maxSizeInMegabytes: 5120
  }
}

// ------------------------------------------------------------------------------------------------- storage

resource storage 'Microsoft.Storage/storageAccounts@2023-05-01' = {
  name: storageAccountName
  location: location
  tags: tags
  kind: 'StorageV2'
  sku: {
    name: 'Standard_ZRS'
  }
  properties: {
    allowSharedKeyAccess: false
    allowBlobPublicAccess: false
    defaultToOAuthAuthentication: true
    minimumTlsVersion: 'TLS1_2'
    supportsHttpsTrafficOnly: true
  }
}

resource blobs 'Microsoft.Storage/storageAccounts/blobServices@2023-05-01' = {
  parent: storage
  name: 'default'
}

resource containers 'Microsoft.Storage/storageAccounts/blobServices/containers@2023-05-01' = [for name in containerNames: {
  parent: blobs
  name: name
  properties: {
    publicAccess: 'None'
  }
}]

// results and claims are folders of a container: blob_prefix in docs/settings.md, and `claims`
resource lifecycle 'Microsoft.Storage/storageAccounts/managementPolicies@2023-05-01' = {
  parent: storage
  name: 'default'
  properties: {
    policy: {
      rules: concat([
        {
          name: 'old-claims'
          type: 'Lifecycle'
          definition: {
            filters: {
              blobTypes: ['blockBlob']
              prefixMatch: map(containerNames, name => '${name}/claims/')
            }
            actions: {
              baseBlob: {
                delete: { daysAfterModificationGreaterThan: keepClaimsDays }
              }
            }
          }
        }
      ], keepResultsDays == 0 ? [] : [
        {
          name: 'old-results'
          type: 'Lifecycle'
          definition: {
            filters: {
              blobTypes: ['blockBlob']
              prefixMatch: map(containerNames, name => '${name}/results/')
            }
            actions: {
              baseBlob: {
                delete: { daysAfterModificationGreaterThan: keepResultsDays }
              }
            }
          }
        }
      ])
    }
  }
}

// -------------------------------------------------------------------------------------------- Azure OpenAI

resource newAccount 'Microsoft.CognitiveServices/accounts@2024-10-01' = if (createOpenAIAccount) {
  name: openAIAccountName
  location: location
  tags: tags
  kind: 'OpenAI'
  sku: {
    name: 'S0'
  }
  properties: {
    customSubDomainName: openAIAccountName
    disableLocalAuth: true
    publicNetworkAccess: 'Enabled'
  }
}

resource account 'Microsoft.CognitiveServices/accounts@2024-10-01' existing = {
  name: openAIAccountName
}

// one after the other: the account refuses two changes at once
@batchSize(1)
resource modelDeployments 'Microsoft.CognitiveServices/accounts/deployments@2024-10-01' = [for deployment in deployments: {
  parent: account
  name: deployment.name
  sku: {
    name: deployment.sku
    capacity: deployment.capacity
  }
  properties: {
    model: {
      format: 'OpenAI'
      name: deployment.model
      version: deployment.version
    }
  }
  dependsOn: [newAccount]
}]

resource inferenceOnlyRole 'Microsoft.Authorization/roleDefinitions@2022-04-01' = if (inferenceOnly) {
  name: guid(resourceGroup().id, 'Azure OpenAI Inference Only')
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
  name: guid(jobs[i].id, workerIdentityName, serviceBusDataReceiver)
  scope: jobs[i]
  properties: {
    principalId: worker.properties.principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', serviceBusDataReceiver)
  }
}]

// jobs are moved from the entry queue, the first, to the queue of their model
resource workerSorts 'Microsoft.Authorization/roleAssignments@2022-04-01' = [for (name, i) in modelQueues: {
  name: guid(jobs[i + 1].id, workerIdentityName, serviceBusDataSender)
  scope: jobs[i + 1]
  properties: {
    principalId: worker.properties.principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', serviceBusDataSender)
  }
}]

resource workerSends 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (hasResultsQueue) {
  name: guid(results.id, workerIdentityName, serviceBusDataSender)
  scope: results
  properties: {
    principalId: worker.properties.principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', serviceBusDataSender)
  }
}

resource workerCalls 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(account.id, workerIdentityName, inferenceOnly ? 'Azure OpenAI Inference Only' : openAIUser)
  scope: account
  properties: {
    principalId: worker.properties.principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: inferenceOnly ? inferenceOnlyRole.id : subscriptionResourceId('Microsoft.Authorization/roleDefinitions', openAIUser)
  }
  dependsOn: [newAccount]
}

resource workerStores 'Microsoft.Authorization/roleAssignments@2022-04-01' = [for (name, i) in containerNames: {
  name: guid(resourceGroup().id, storageAccountName, name, workerIdentityName, blobDataContributor)
  scope: containers[i]
  properties: {
    principalId: worker.properties.principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', blobDataContributor)
  }
}]

resource kedaCounts 'Microsoft.Authorization/roleAssignments@2022-04-01' = [for (name, i) in kedaQueues: {
  name: guid(jobs[i].id, kedaIdentityName, serviceBusDataOwner)
  scope: jobs[i]
  properties: {
    principalId: keda.properties.principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', serviceBusDataOwner)
  }
}]

resource producerSubmits 'Microsoft.Authorization/roleAssignments@2022-04-01' = [for (name, i) in producerQueues: {
  name: guid(jobs[i].id, producerPrincipalId, serviceBusDataSender)
  scope: jobs[i]
  properties: {
    principalId: producerPrincipalId
    principalType: producerPrincipalType
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', serviceBusDataSender)
  }
}]

resource producerAnnounces 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (hasProducer && hasResultsQueue) {
  name: guid(results.id, producerPrincipalId, serviceBusDataSender)
  scope: results
  properties: {
    principalId: producerPrincipalId
    principalType: producerPrincipalType
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', serviceBusDataSender)
  }
}

resource producerCollects 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (hasProducer && hasResultsQueue) {
  name: guid(results.id, producerPrincipalId, serviceBusDataReceiver)
  scope: results
  properties: {
    principalId: producerPrincipalId
    principalType: producerPrincipalType
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', serviceBusDataReceiver)
  }
}

resource producerStores 'Microsoft.Authorization/roleAssignments@2022-04-01' = [for (name, i) in producerContainers: {
  name: guid(resourceGroup().id, storageAccountName, name, producerPrincipalId, blobDataContributor)
  scope: containers[i]
  properties: {
    principalId: producerPrincipalId
    principalType: producerPrincipalType
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', blobDataContributor)
  }
}]

// -------------------------------------------------------------------------------- what the chart's values need

@description('workloadIdentity.clientId')
output workerClientId string = worker.properties.clientId

@description('workloadIdentity.tenantId')
output tenantId string = worker.properties.tenantId

@description('autoscaling.keda.identityId')
output kedaClientId string = hasKeda ? keda.properties.clientId : ''

@description('config.servicebus_namespace')
output serviceBusHost string = replace(replace(namespace.properties.serviceBusEndpoint, 'https://', ''), ':443/', '')

@description('config.openai_endpoint')
output openAIEndpoint string = account.properties.endpoint

@description('config.blob_container')
output blobContainer string = '${storage.properties.primaryEndpoints.blob}${containerNames[0]}'
