"""The web page of a node: its files, who serves them, and a gateway for a node that listens on no address."""
