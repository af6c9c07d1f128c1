"""The values of the domain: topic, message, capability, descriptor, task, pool, decisions. Import them by module."""
