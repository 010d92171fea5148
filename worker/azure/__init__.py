"""Everything that talks to Azure. Each service is a package; none knows another."""
