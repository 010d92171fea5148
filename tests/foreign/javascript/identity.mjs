// Tokens by workload identity, from a pod's environment variables.
import assert from "node:assert/strict";
import { ChainedTokenCredential, DefaultAzureCredential, ManagedIdentityCredential, WorkloadIdentityCredential, getBearerTokenProvider } from "@azure/identity";

export const client = "@azure/identity";

const { AZURE_CLIENT_ID: clientId, AZURE_TENANT_ID: tenantId } = process.env;
// Otherwise each new credential asks login.microsoftonline.com about the authority, and waits until that fails.
const quick = { disableInstanceDiscovery: true };

const claimsOf = ({ token }) => JSON.parse(Buffer.from(token.split(".")[1], "base64url"));

export const checks = {
  async "DefaultAzureCredential gets a token for each service"() {
    const credential = new DefaultAzureCredential(quick);
    for (const resource of ["https://cognitiveservices.azure.com", "https://servicebus.azure.net", "https://storage.azure.com", "https://ai.azure.com"]) {
      const token = await credential.getToken(`${resource}/.default`);
      assert.deepEqual([claimsOf(token).aud, claimsOf(token).tid], [resource, tenantId]);
      assert(token.expiresOnTimestamp > Date.now());
    }
  },
  async "WorkloadIdentityCredential, alone and in a chain"() {
    const workload = new WorkloadIdentityCredential(quick);
    const chain = new ChainedTokenCredential(workload, new ManagedIdentityCredential());
    for (const credential of [workload, chain]) assert((await credential.getToken("https://storage.azure.com/.default")).token);
  },
  async "a token is kept until it has to be renewed"() {
    const provider = getBearerTokenProvider(new DefaultAzureCredential(quick), "https://storage.azure.com/.default");
    assert.equal(await provider(), await provider());
  },
  async "an unknown client, tenant and resource are refused with Entra's codes"() {
    const scope = "https://storage.azure.com/.default";
    const absent = "00000000-1111-4000-8000-000000000000";
    const stranger = new WorkloadIdentityCredential({ ...quick, clientId: absent });
    await assert.rejects(stranger.getToken(scope), /AADSTS700016/);
    const elsewhere = new WorkloadIdentityCredential({ ...quick, clientId, tenantId: absent });
    await assert.rejects(elsewhere.getToken(scope));
    await assert.rejects(new WorkloadIdentityCredential(quick).getToken("https://absent.example/.default"), /AADSTS500011/);
  },
};
