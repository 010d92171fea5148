using 'main.bicep'

param clusterIssuerUrl = 'https://eastus.oic.prod-aks.azure.com/TENANT/CLUSTER/'
param serviceBusNamespaceName = 'my-namespace'
param openAIAccountName = 'my-account'
param storageAccountName = 'myresults'
param jobsQueueNames = ['jobs']

// az cognitiveservices model list -l LOCATION shows which models a region has, in which versions
var model = readEnvironmentVariable('MODEL', 'gpt-5.4-mini')
var modelVersion = readEnvironmentVariable('MODEL_VERSION')
param deployments = [
  {
    name: model
    model: model
    version: modelVersion
    sku: 'GlobalStandard'
    capacity: 2000
  }
]
