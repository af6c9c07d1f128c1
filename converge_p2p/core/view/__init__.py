"""The fold: from a set of operations to the state of members and tasks, whatever the order."""
