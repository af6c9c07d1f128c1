"""`converge-node sim`: what a pool costs, by the production replica on a virtual network.

`plan` says what is run, `graph` who is linked with whom; `network`, `gossip` and `crowd` run it; `measure` says what it
cost, and `plot` draws that. `cli` is the command.
"""
