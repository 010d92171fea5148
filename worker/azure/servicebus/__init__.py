"""Service Bus: the jobs queue, the results queue, links, locks and settlements."""
