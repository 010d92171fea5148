"""A keyless streaming batch worker for Azure OpenAI, fed through Azure Service Bus."""
