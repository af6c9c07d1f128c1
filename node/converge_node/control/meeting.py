"""Topics, invitations and agents at the control interface: which request leads to which function.

Knows: requests and answers. Must not know: HTTP.
Source: docs/control.md.
"""

from __future__ import annotations

from typing import Final

from converge_node.control import agents, mesh
from converge_node.control.state import Asked, Endpoint
from converge_node.control.stream import Open
from converge_p2p.client import agent_schema, mesh_schema


async def show_mesh(asked: Asked) -> mesh_schema.MeshItem:
    """Return the network and the topics."""
    return mesh.mesh_item(asked.node)


async def join_topic(asked: Asked) -> mesh_schema.TopicItem:
    """Take part in a topic."""
    return await asked.state.meshes.join_topic(asked.node, asked.body)


async def leave_topic(asked: Asked) -> list[mesh_schema.TopicItem]:
    """Leave a topic."""
    return await asked.state.meshes.leave_topic(asked.node, asked.body)


async def publish(asked: Asked) -> mesh_schema.PublishOnTopic:
    """Say something on a topic."""
    asked.state.running()
    return await asked.state.meshes.publish(asked.body)


async def watch_topic(asked: Asked) -> Open:
    """Return what opens the messages of a topic."""
    asked.state.running()
    return asked.state.meshes.watch(asked.query.topic)


async def write_invitation(asked: Asked) -> mesh_schema.InvitationText:
    """Write an invitation line."""
    return await mesh.write_invitation(asked.node, asked.body)


async def follow(asked: Asked) -> mesh_schema.FollowedItem:
    """Follow an invitation line."""
    item, pool = await asked.state.meshes.follow(asked.node, asked.body)
    if pool is not None:
        asked.state.pool_joined(pool)
    return item


async def list_agents(asked: Asked) -> list[agent_schema.AgentItem]:
    """Return agents that are known here."""
    return agents.list_agents(asked.node, asked.query.limit)


async def find_agents(asked: Asked) -> list[agent_schema.AgentItem]:
    """Look for agents."""
    return await agents.find_agents(asked.node, asked.body)


async def publish_agent(asked: Asked) -> agent_schema.AgentItem:
    """Let the node's agent be found."""
    return await agents.publish(asked.node, asked.body)


async def revoke_agent(asked: Asked) -> agent_schema.RevokedItem:
    """Take back what was published."""
    return agent_schema.RevokedItem(revoked=await asked.node.discovery.unregister())


async def agent(asked: Asked) -> agent_schema.AgentItem:
    """Return the newest descriptor of an agent."""
    return await agents.show_agent(asked.node, asked.places["agent"])


async def hosted(asked: Asked) -> list[agent_schema.HostedItem]:
    """Return the agents that the node hosts."""
    return agents.list_hosted(asked.node)


async def record(asked: Asked) -> list[agent_schema.RecordItem]:
    """Return entries of a replay log."""
    first = asked.query.first
    return await agents.read_record(asked.node, asked.places["name"], first - 1, agents.RECORD_ENTRIES_MAX)


ENDPOINTS: Final[dict[str, Endpoint]] = {
    "mesh": show_mesh,
    "join_topic": join_topic,
    "leave_topic": leave_topic,
    "publish": publish,
    "watch_topic": watch_topic,
    "write_invitation": write_invitation,
    "follow": follow,
    "agents": list_agents,
    "find_agents": find_agents,
    "publish_agent": publish_agent,
    "revoke_agent": revoke_agent,
    "agent": agent,
    "hosted": hosted,
    "record": record,
}
