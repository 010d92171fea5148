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

@description('Names of the containers. The first is that of results. Large jobs are stored there too, unless claims_container names another.')
@minLength(1)
param containerNames array = ['results']

@description('Days after which results are deleted. 0: never.')
@minValue(0)
param keepResultsDays int = 0

@description('Days after which large jobs are deleted. Must be longer than any job waits.')
@minValue(2)
param keepClaimsDays int = 30

@description('Name of the Azure OpenAI account in this resource group.')
param openAIAccountName string

@description('Create the account, or set up the one of that name in this resource group. False: the account belongs to somebody else; only the role is assigned, and its keys stay as they are.')
param createOpenAIAccount bool = true

@description('Deployments to create: {name, model, version, sku, capacity}; capacity counts 1,000 tokens a minute.')
param deployments array = []

@description('Give the worker the custom role Azure OpenAI Inference Only in place of Cognitive Services OpenAI User.')
param inferenceOnly bool = false

@description('Object id of the producer: a group, a user or a service principal. Empty: no roles for a producer.')
param producerPrincipalId string = ''

@description('Type of the producer.')
@allowed(['Group', 'User', 'ServicePrincipal'])
param producerPrincipalType string = 'Group'

@description('Disabled: namespace, account and storage account answer private endpoints only. Needs a Premium namespace.')
@allowed(['Enabled', 'Disabled'])
param publicNetworkAccess string = 'Enabled'

@description('IPv4 ranges that may use the public endpoints. Write a single address without /32. Empty: every address. Needs a Premium namespace.')
param allowedIpRanges array = []

@description('Resource id of the subnet for private endpoints of namespace, account and storage account. Empty: no private endpoints. Needs a Premium namespace.')
param privateEndpointSubnetResourceId string = ''

@description('Private DNS zones for the private endpoints, {servicebus: ..., openai: ..., blob: ...}, each a resource id. An endpoint without a zone gets no DNS record.')
param privateDnsZoneResourceIds object = {}

@description('Resource id of the Log Analytics workspace for logs and metrics of namespace, account and storage account. Empty: no diagnostic settings. Every call and every blob is a record that is billed.')
param workspaceResourceId string = ''

var audience = 'api://AzureADTokenExchange'
var hasKeda = !empty(kedaIdentityName)
var hasResultsQueue = !empty(resultsQueueName)
var defaultAction = empty(allowedIpRanges) ? 'Allow' : 'Deny'

// ---------------------------------------------------------------------------------------------- identities

resource worker 'Microsoft.ManagedIdentity/userAssignedIdentities@2024-11-30' = {
  name: workerIdentityName
  location: location
  tags: tags
}

resource workerCredential 'Microsoft.ManagedIdentity/userAssignedIdentities/federatedIdentityCredentials@2024-11-30' = {
  parent: worker
  name: 'aoai-worker'
  properties: {
    issuer: clusterIssuerUrl
    subject: 'system:serviceaccount:${workerServiceAccount}'
    audiences: [audience]
  }
}

resource keda 'Microsoft.ManagedIdentity/userAssignedIdentities@2024-11-30' = if (hasKeda) {
  name: empty(kedaIdentityName) ? 'none' : kedaIdentityName
  location: location
  tags: tags
}

resource kedaCredential 'Microsoft.ManagedIdentity/userAssignedIdentities/federatedIdentityCredentials@2024-11-30' = if (hasKeda) {
  parent: keda
  name: 'keda-operator'
  properties: {
    issuer: clusterIssuerUrl
    subject: 'system:serviceaccount:${kedaServiceAccount}'
    audiences: [audience]
  }
}

// --------------------------------------------------------------------------------------------- Service Bus

resource namespace 'Microsoft.ServiceBus/namespaces@2026-01-01' = {
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
    publicNetworkAccess: publicNetworkAccess
  }
}

resource jobs 'Microsoft.ServiceBus/namespaces/queues@2026-01-01' = [for name in jobsQueueNames: {
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

resource results 'Microsoft.ServiceBus/namespaces/queues@2026-01-01' = if (hasResultsQueue) {
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

resource storage 'Microsoft.Storage/storageAccounts@2026-09-01' = {
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
    publicNetworkAccess: publicNetworkAccess
    networkAcls: {
      bypass: 'AzureServices'
      defaultAction: defaultAction
      ipRules: [for cidr in allowedIpRanges: {
        value: cidr
        action: 'Allow'
      }]
    }
  }
}

resource blobs 'Microsoft.Storage/storageAccounts/blobServices@2026-09-01' = {
  parent: storage
  name: 'default'
}

resource containers 'Microsoft.Storage/storageAccounts/blobServices/containers@2026-09-01' = [for name in containerNames: {
  parent: blobs
  name: name
  properties: {
    publicAccess: 'None'
  }
}]

// results and claims are folders of a container: blob_prefix in docs/settings.md, and `claims`
resource lifecycle 'Microsoft.Storage/storageAccounts/managementPolicies@2026-09-01' = {
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

resource newAccount 'Microsoft.CognitiveServices/accounts@2026-09-01' = if (createOpenAIAccount) {
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
    publicNetworkAccess: publicNetworkAccess
    networkAcls: {
      defaultAction: defaultAction
      ipRules: [for cidr in allowedIpRanges: {
        value: cidr
      }]
    }
  }
}

resource account 'Microsoft.CognitiveServices/accounts@2026-09-01' existing = {
  name: openAIAccountName
}

// one after the other: the account refuses two changes at once
@batchSize(1)
resource modelDeployments 'Microsoft.CognitiveServices/accounts/deployments@2026-09-01' = [for deployment in deployments: {
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

// ------------------------------------------------------------------------------------------------- network

resource namespaceFirewall 'Microsoft.ServiceBus/namespaces/networkRuleSets@2026-01-01' = if (!empty(allowedIpRanges)) {
  parent: namespace
  name: 'default'
  properties: {
    publicNetworkAccess: publicNetworkAccess
    defaultAction: 'Deny'
    ipRules: [for cidr in allowedIpRanges: {
      ipMask: cidr
      action: 'Allow'
    }]
  }
}

var endpoints = empty(privateEndpointSubnetResourceId) ? [] : [
  {
    name: '${serviceBusNamespaceName}-servicebus'
    service: 'servicebus'
    resourceId: namespace.id
    group: 'namespace'
  }
  {
    name: '${openAIAccountName}-openai'
    service: 'openai'
    resourceId: account.id
    group: 'account'
  }
  {
    name: '${storageAccountName}-blob'
    service: 'blob'
    resourceId: storage.id
    group: 'blob'
  }
]

resource privateEndpoints 'Microsoft.Network/privateEndpoints@2026-05-01' = [for endpoint in endpoints: {
  name: endpoint.name
  location: location
  tags: tags
  properties: {
    subnet: {
      id: privateEndpointSubnetResourceId
    }
    privateLinkServiceConnections: [
      {
        name: endpoint.service
        properties: {
          privateLinkServiceId: endpoint.resourceId
          groupIds: [endpoint.group]
        }
      }
    ]
  }
  dependsOn: [newAccount, modelDeployments] // the account refuses two changes at once
}]

var namedEndpoints = filter(endpoints, endpoint => contains(privateDnsZoneResourceIds, endpoint.service))

resource privateNames 'Microsoft.Network/privateEndpoints/privateDnsZoneGroups@2026-05-01' = [for endpoint in namedEndpoints: {
  name: '${endpoint.name}/default'
  properties: {
    privateDnsZoneConfigs: [
      {
        name: endpoint.service
        properties: {
          privateDnsZoneId: privateDnsZoneResourceIds[endpoint.service]
        }
      }
    ]
  }
  dependsOn: [privateEndpoints]
}]

// --------------------------------------------------------------------------------------------- diagnostics

var logs = [
  {
    categoryGroup: 'allLogs'
    enabled: true
  }
]
var metrics = [
  {
    category: 'AllMetrics'
    enabled: true
  }
]

resource namespaceDiagnostics 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = if (!empty(workspaceResourceId)) {
  name: 'aoai-worker'
  scope: namespace
  properties: {
    workspaceId: workspaceResourceId
    logs: logs
    metrics: metrics
  }
}

resource accountDiagnostics 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = if (!empty(workspaceResourceId)) {
  name: 'aoai-worker'
  scope: account
  properties: {
    workspaceId: workspaceResourceId
    logs: logs
    metrics: metrics
  }
  dependsOn: [newAccount]
}

resource blobDiagnostics 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = if (!empty(workspaceResourceId)) {
  name: 'aoai-worker'
  scope: blobs
  properties: {
    workspaceId: workspaceResourceId
    logs: logs
    metrics: metrics
  }
}

// --------------------------------------------------------------------------------------------------- roles

module roles 'roles.bicep' = {
  name: 'aoai-worker-roles'
  params: {
    serviceBusNamespaceName: serviceBusNamespaceName
    jobsQueueNames: jobsQueueNames
    resultsQueueName: resultsQueueName
    storageAccountName: storageAccountName
    containerNames: containerNames
    openAIAccountName: openAIAccountName
    inferenceOnly: inferenceOnly
    workerPrincipalId: worker.properties.principalId
    kedaPrincipalId: hasKeda ? keda.properties.principalId : ''
    producerPrincipalId: producerPrincipalId
    producerPrincipalType: producerPrincipalType
  }
  dependsOn: [jobs, results, containers, newAccount]
}

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

@description('Whether the account takes Entra tokens alone. False only where createOpenAIAccount is false: its keys are switched off by its owner.')
output openAILocalAuthDisabled bool = account.properties.?disableLocalAuth ?? false
