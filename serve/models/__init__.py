"""The models of a server by name, hot reload, and their batching queues. May import inference."""
