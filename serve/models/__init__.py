"""Models by name, exchanged in service, and their queues."""
