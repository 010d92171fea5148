#!/usr/bin/env bash
# The same as main.bicep by az: identities, Service Bus, storage, an Azure OpenAI account, the smallest roles. Running
# it again, or main.bicep after it, changes nothing: assignments of roles have the same names in both. Networks and
# diagnostic settings are main.bicep's alone; this leaves them as they are.
# Needs az 2.60 or newer, logged in, with the right to assign roles in the resource group.
#
#   RESOURCE_GROUP=... CLUSTER_GROUP=... CLUSTER=... NAMESPACE=my-namespace ACCOUNT=my-account STORAGE=myresults \
#     k8s/azure/setup.sh
#
# Optional: LOCATION, WORKER_IDENTITY, KEDA_IDENTITY (empty: none), WORKER_SERVICE_ACCOUNT, KEDA_SERVICE_ACCOUNT,
# SKU, JOBS_QUEUES ("jobs jobs-gpt-5.4 jobs-gpt-5.4-mini": the entry queue, then with several models the queue of each),
# RESULTS_QUEUE (for the queue sink), CONTAINERS ("results": the first is that of results), KEEP_RESULTS_DAYS
# (0: for ever), KEEP_CLAIMS_DAYS, INFERENCE_ONLY (true, false),
# PRODUCER (object id; empty: nobody), PRODUCER_TYPE. Deployments of models are left to you: az cognitiveservices
# account deployment create.
set -euo pipefail

: "${RESOURCE_GROUP:?is missing: the resource group to set up, which must exist}"
: "${CLUSTER_GROUP:?is missing: the resource group of the AKS cluster}"
: "${CLUSTER:?is missing: the name of the AKS cluster}"
: "${NAMESPACE:?is missing: a name for the Service Bus namespace, unique in Azure}"
: "${ACCOUNT:?is missing: a name for the Azure OpenAI account, unique in Azure}"
: "${STORAGE:?is missing: a name for the storage account, 3 to 24 lower-case letters and digits, unique in Azure}"
LOCATION="${LOCATION:-$(az group show -n "$RESOURCE_GROUP" --query location -o tsv)}"
WORKER_IDENTITY="${WORKER_IDENTITY:-aoai-worker}"
KEDA_IDENTITY="${KEDA_IDENTITY-aoai-worker-keda}"
WORKER_SERVICE_ACCOUNT="${WORKER_SERVICE_ACCOUNT:-aoai-worker:aoai-worker}"
KEDA_SERVICE_ACCOUNT="${KEDA_SERVICE_ACCOUNT:-kube-system:keda-operator}"
SKU="${SKU:-Standard}"
JOBS_QUEUES="${JOBS_QUEUES:-jobs}"
RESULTS_QUEUE="${RESULTS_QUEUE-}"
CONTAINERS="${CONTAINERS:-results}"
KEEP_RESULTS_DAYS="${KEEP_RESULTS_DAYS:-0}"
KEEP_CLAIMS_DAYS="${KEEP_CLAIMS_DAYS:-30}"
INFERENCE_ONLY="${INFERENCE_ONLY:-false}"
PRODUCER="${PRODUCER-}"
PRODUCER_TYPE="${PRODUCER_TYPE:-Group}"

# roles: worker/roles.py
SERVICE_BUS_DATA_RECEIVER=4f6d3b9b-027b-4f4c-9142-0e5a2a2247e0
SERVICE_BUS_DATA_SENDER=69a216fc-b8fb-44d8-bc22-1f3c2cd27a39
SERVICE_BUS_DATA_OWNER=090c5cfd-751d-490a-894a-3ce6f1109419
OPENAI_USER=5e0bd9bd-7b93-4f28-af87-19fc36ad61bd
BLOB_DATA_CONTRIBUTOR=ba92f5b4-2d11-453d-a403-e96b0029c9fe

AUDIENCE=api://AzureADTokenExchange
GROUP_ID="$(az group show -n "$RESOURCE_GROUP" --query id -o tsv)"
NAMESPACE_ID="$GROUP_ID/providers/Microsoft.ServiceBus/namespaces/$NAMESPACE"
ACCOUNT_ID="$GROUP_ID/providers/Microsoft.CognitiveServices/accounts/$ACCOUNT"
STORAGE_ID="$GROUP_ID/providers/Microsoft.Storage/storageAccounts/$STORAGE"

# exactly the properties of main.bicep, by their names in the resource type
JOBS_PROPERTIES='{"lockDuration": "PT5M", "maxDeliveryCount": 20, "requiresDuplicateDetection": true,
  "duplicateDetectionHistoryTimeWindow": "P1D", "requiresSession": false, "enablePartitioning": false,
  "deadLetteringOnMessageExpiration": true, "maxSizeInMegabytes": 5120}'
RESULTS_PROPERTIES='{"lockDuration": "PT5M", "maxDeliveryCount": 20, "requiresDuplicateDetection": true,
  "duplicateDetectionHistoryTimeWindow": "P1D", "requiresSession": true, "enablePartitioning": false,
  "deadLetteringOnMessageExpiration": true, "maxSizeInMegabytes": 5120}'
INFERENCE_ONLY_ROLE='{"properties": {"roleName": "Azure OpenAI Inference Only (GROUP_NAME)",
  "description": "Call the deployments of Azure OpenAI, and read nothing.", "type": "CustomRole",
  "permissions": [{"actions": [], "notActions": [], "notDataActions": [], "dataActions": [
    "Microsoft.CognitiveServices/accounts/OpenAI/deployments/chat/completions/action",
    "Microsoft.CognitiveServices/accounts/OpenAI/deployments/completions/action",
    "Microsoft.CognitiveServices/accounts/OpenAI/deployments/embeddings/action",
    "Microsoft.CognitiveServices/accounts/OpenAI/responses/write"]}],
  "assignableScopes": ["GROUP_ID"]}}'

make_identity() { # NAME CREDENTIAL SERVICE_ACCOUNT
    az identity create -g "$RESOURCE_GROUP" -n "$1" -l "$LOCATION" -o none
    az identity federated-credential create -g "$RESOURCE_GROUP" --identity-name "$1" -n "$2" \
        --issuer "$ISSUER" --subject "system:serviceaccount:$3" --audience "$AUDIENCE" -o none
}

principal_of() { # IDENTITY
    az identity show -g "$RESOURCE_GROUP" -n "$1" --query principalId -o tsv
}

make_queue() { # NAME PROPERTIES
    az resource create --id "$NAMESPACE_ID/queues/$1" --api-version 2026-01-01 --properties "$2" -o none
}

lifecycle_rule() { # FOLDER DAYS
    local prefixes="" container
    for container in $CONTAINERS; do prefixes="$prefixes${prefixes:+, }\"$container/$1/\""; done
    printf '{"name": "old-%s", "type": "Lifecycle", "definition": {"filters": {"blobTypes": ["blockBlob"], "prefixMatch": [%s]}, "actions": {"baseBlob": {"delete": {"daysAfterModificationGreaterThan": %s}}}}}' \
        "$1" "$prefixes" "$2"
}

find_resource() { # TYPE NAME: its id, or nothing where there is none; what az is not allowed to see is an error
    az resource list -g "$RESOURCE_GROUP" --resource-type "$1" --query "[?name=='$2'].id" -o tsv
}

sha1() {
    if command -v sha1sum >/dev/null; then sha1sum; else shasum; fi
}

guid() { # TEXT: what guid() of Bicep makes of it, a UUID of version 5 in the namespace of Azure's templates
    local hash variant
    hash="$({
        printf '\x11\xfb\x06\xfb\x71\x2d\x4d\xdd\x98\xc7\xe7\x1b\xbd\x58\x88\x30'
        printf '%s' "$1"
    } | sha1)"
    variant="$(printf '%x' $((0x${hash:16:1} & 3 | 8)))"
    echo "${hash:0:8}-${hash:8:4}-5${hash:13:3}-$variant${hash:17:3}-${hash:20:12}"
}

grant() { # PRINCIPAL TYPE ROLE SCOPE
    local scope
    scope="$(tr '[:upper:]' '[:lower:]' <<<"$4")"
    az role assignment create --name "$(guid "$scope-$1-$3")" --assignee-object-id "$1" \
        --assignee-principal-type "$2" --role "$3" --scope "$4" -o none
}

echo "1/5 identities"
ISSUER="$(az aks show -g "$CLUSTER_GROUP" -n "$CLUSTER" --query oidcIssuerProfile.issuerUrl -o tsv)"
make_identity "$WORKER_IDENTITY" aoai-worker "$WORKER_SERVICE_ACCOUNT"
WORKER="$(principal_of "$WORKER_IDENTITY")"
KEDA=""
if [ -n "$KEDA_IDENTITY" ]; then
    make_identity "$KEDA_IDENTITY" keda-operator "$KEDA_SERVICE_ACCOUNT"
    KEDA="$(principal_of "$KEDA_IDENTITY")"
fi

echo "2/5 Service Bus"
found="$(find_resource Microsoft.ServiceBus/namespaces "$NAMESPACE")"
if [ -z "$found" ]; then
    az servicebus namespace create -g "$RESOURCE_GROUP" -n "$NAMESPACE" -l "$LOCATION" --sku "$SKU" \
        --disable-local-auth true --minimum-tls-version 1.2 -o none
else
    az servicebus namespace update -g "$RESOURCE_GROUP" -n "$NAMESPACE" --disable-local-auth true \
        --minimum-tls-version 1.2 -o none
fi
for queue in $JOBS_QUEUES; do make_queue "$queue" "$JOBS_PROPERTIES"; done
if [ -n "$RESULTS_QUEUE" ]; then make_queue "$RESULTS_QUEUE" "$RESULTS_PROPERTIES"; fi

echo "3/5 storage"
found="$(find_resource Microsoft.Storage/storageAccounts "$STORAGE")"
if [ -z "$found" ]; then
    az storage account create -g "$RESOURCE_GROUP" -n "$STORAGE" -l "$LOCATION" --kind StorageV2 --sku Standard_ZRS \
        --allow-shared-key-access false --allow-blob-public-access false --min-tls-version TLS1_2 --https-only true -o none
else
    az storage account update -g "$RESOURCE_GROUP" -n "$STORAGE" \
        --allow-shared-key-access false --allow-blob-public-access false --min-tls-version TLS1_2 --https-only true -o none
fi
az resource update --ids "$STORAGE_ID" --set properties.defaultToOAuthAuthentication=true -o none
for container in $CONTAINERS; do
    az storage container-rm create -g "$RESOURCE_GROUP" --storage-account "$STORAGE" -n "$container" -o none
done
rules="$(lifecycle_rule claims "$KEEP_CLAIMS_DAYS")"
if [ "$KEEP_RESULTS_DAYS" != 0 ]; then rules="$rules, $(lifecycle_rule results "$KEEP_RESULTS_DAYS")"; fi
az storage account management-policy create -g "$RESOURCE_GROUP" --account-name "$STORAGE" \
    --policy "{\"rules\": [$rules]}" -o none

echo "4/5 Azure OpenAI"
found="$(find_resource Microsoft.CognitiveServices/accounts "$ACCOUNT")"
if [ -z "$found" ]; then
    az cognitiveservices account create -g "$RESOURCE_GROUP" -n "$ACCOUNT" -l "$LOCATION" --kind OpenAI --sku S0 \
        --custom-domain "$ACCOUNT" -o none
fi
az resource update --ids "$ACCOUNT_ID" --set properties.disableLocalAuth=true -o none # create has no option for it

echo "5/5 roles"
OPENAI_ROLE="$OPENAI_USER"
if [ "$INFERENCE_ONLY" = true ]; then
    OPENAI_ROLE="$(guid "$GROUP_ID-Azure OpenAI Inference Only")"
    definition="${INFERENCE_ONLY_ROLE//GROUP_ID/$GROUP_ID}"
    az rest --method put --body "${definition//GROUP_NAME/${GROUP_ID##*/}}" -o none \
        --url "$GROUP_ID/providers/Microsoft.Authorization/roleDefinitions/$OPENAI_ROLE?api-version=2022-04-01"
fi
ENTRY_QUEUE="${JOBS_QUEUES%% *}"
for queue in $JOBS_QUEUES; do
    grant "$WORKER" ServicePrincipal "$SERVICE_BUS_DATA_RECEIVER" "$NAMESPACE_ID/queues/$queue"
    if [ "$queue" != "$ENTRY_QUEUE" ]; then # jobs are moved from the entry queue to the queue of their model
        grant "$WORKER" ServicePrincipal "$SERVICE_BUS_DATA_SENDER" "$NAMESPACE_ID/queues/$queue"
    fi
    if [ -n "$KEDA" ]; then
        grant "$KEDA" ServicePrincipal "$SERVICE_BUS_DATA_OWNER" "$NAMESPACE_ID/queues/$queue"
    fi
    if [ -n "$PRODUCER" ]; then
        grant "$PRODUCER" "$PRODUCER_TYPE" "$SERVICE_BUS_DATA_SENDER" "$NAMESPACE_ID/queues/$queue"
    fi
done
grant "$WORKER" ServicePrincipal "$OPENAI_ROLE" "$ACCOUNT_ID"
if [ -n "$RESULTS_QUEUE" ]; then
    grant "$WORKER" ServicePrincipal "$SERVICE_BUS_DATA_SENDER" "$NAMESPACE_ID/queues/$RESULTS_QUEUE"
    if [ -n "$PRODUCER" ]; then
        grant "$PRODUCER" "$PRODUCER_TYPE" "$SERVICE_BUS_DATA_SENDER" "$NAMESPACE_ID/queues/$RESULTS_QUEUE"
        grant "$PRODUCER" "$PRODUCER_TYPE" "$SERVICE_BUS_DATA_RECEIVER" "$NAMESPACE_ID/queues/$RESULTS_QUEUE"
    fi
fi
for container in $CONTAINERS; do
    scope="$STORAGE_ID/blobServices/default/containers/$container"
    grant "$WORKER" ServicePrincipal "$BLOB_DATA_CONTRIBUTOR" "$scope"
    if [ -n "$PRODUCER" ]; then
        grant "$PRODUCER" "$PRODUCER_TYPE" "$BLOB_DATA_CONTRIBUTOR" "$scope"
    fi
done

echo "The chart's values:"
cat <<VALUES
config:
  servicebus_namespace: $NAMESPACE.servicebus.windows.net
  openai_endpoint: $(az cognitiveservices account show -g "$RESOURCE_GROUP" -n "$ACCOUNT" --query properties.endpoint -o tsv)
  blob_container: $(az storage account show -g "$RESOURCE_GROUP" -n "$STORAGE" --query primaryEndpoints.blob -o tsv)${CONTAINERS%% *}
workloadIdentity:
  clientId: $(az identity show -g "$RESOURCE_GROUP" -n "$WORKER_IDENTITY" --query clientId -o tsv)
VALUES
if [ -n "$KEDA_IDENTITY" ]; then
    cat <<VALUES
autoscaling:
  keda:
    identityId: $(az identity show -g "$RESOURCE_GROUP" -n "$KEDA_IDENTITY" --query clientId -o tsv)
VALUES
fi
