using 'main.bicep'

param clusterIssuerUrl = 'https://eastus.oic.prod-aks.azure.com/TENANT/CLUSTER/'
param serviceBusNamespaceName = 'my-namespace'
param openAIAccountName = 'my-account'
param storageAccountName = ''
param jobsQueueNames = ['jobs']
param deployments = [
  {
    name: 'gpt-4o-mini'
    model: 'gpt-4o-mini'
    version: '2024-07-18'
    sku: 'GlobalStandard'
    capacity: 2000
  }
]
