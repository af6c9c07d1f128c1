// The mesh as a graph: nodes on an ellipse, pools inside it, and what passes between them.

import { calm, keyed, setAttributes, setText, svg } from "./dom.js";
import { plural, short } from "./words.js";

const WIDTH = 720;
const HEIGHT = 440;
const TOP = 76;
const BOTTOM = HEIGHT - 58;
const CENTRE = { x: WIDTH / 2, y: HEIGHT / 2 };
const NODES_MAX = 20;
const HUBS_MAX = 6;
const PULSES_MAX = 40;
const PULSE_MS = 900;
const NAME_CHARACTERS_MAX = 18;

// Where pools stand, from the centre, by how many there are.
const SLOTS = [
  [[0, 0]],
  [[-105, 0], [105, 0]],
  [[-105, -42], [105, -42], [0, 56]],
  [[-105, -45], [105, -45], [-105, 45], [105, 45]],
  [[-105, -62], [105, -62], [0, 0], [-105, 62], [105, 62]],
  [[-105, -64], [105, -64], [-105, 0], [105, 0], [-105, 64], [105, 64]],
];

const cut = (text) => (text.length > NAME_CHARACTERS_MAX ? `${text.slice(0, NAME_CHARACTERS_MAX - 1)}…` : text);

export class Mesh {
  #onPool;
  #edges = svg("g");
  #pulses = svg("g");
  #hubs = svg("g");
  #nodes = svg("g");
  #paths = new Map(); // "agent pool" → path from the node to the hub

  constructor(parent, onPool) {
    this.#onPool = onPool;
    const picture = svg(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "group", "aria-label": "This node, the nodes it knows, and their pools" },
      this.#edges,
      this.#pulses,
      this.#hubs,
      this.#nodes,
    );
    parent.append(picture);
  }

  render(model, chosen) {
    const nodes = placed(nodesOf(model));
    const hubs = hubsOf(model, nodes);
    const at = new Map(nodes.map((node) => [node.id, node]));
    const self = nodes[0];
    const links = nodes.slice(1).filter((node) => node.connected);
    const ties = hubs.flatMap((hub) => hub.members.map((member) => ({ hub, member, node: at.get(member.agent_id) })));
    const edges = [
      ...links.map((node) => ({
        key: `link ${node.id}`,
        class: node.relayed ? "link relayed" : "link",
        d: bow(self, node, 0.16),
      })),
      ...ties
        .filter((tie) => tie.node)
        .map(({ hub, member, node }) => ({
          key: `${node.id} ${hub.id}`,
          class: `tie hue-${hub.hue} ${member.elector ? "elector" : "member"} ${dim(hub, chosen)}`,
          d: bow(node, hub, -0.12),
        })),
    ];
    keyed(this.#edges, edges, (edge) => edge.key, () => svg("path"), (path, edge) => {
      setAttributes(path, { class: edge.class, d: edge.d });
    });
    this.#paths = new Map([...this.#edges.children].map((path) => [path.dataset.key, path]));
    keyed(this.#hubs, hubs, (hub) => hub.id, (hub) => this.#newHub(hub), (group, hub) => drawHub(group, hub, chosen));
    keyed(this.#nodes, nodes, (node) => node.id, newNode, (group, node) => drawNode(group, node));
  }

  // Let a dot run between a node and a pool.
  pulse(agent, pool, { inward, tone }) {
    const path = this.#paths.get(`${agent} ${pool}`);
    if (!path || calm() || this.#pulses.childElementCount >= PULSES_MAX) return;
    const dot = svg("circle", { class: `pulse ${tone}`, r: 4.5 });
    this.#pulses.append(dot);
    const length = path.getTotalLength();
    const began = performance.now();
    const step = (now) => {
      const part = Math.min(1, (now - began) / PULSE_MS);
      const eased = part < 0.5 ? 2 * part * part : 1 - (2 - 2 * part) ** 2 / 2;
      const point = path.getPointAtLength(length * (inward ? eased : 1 - eased));
      setAttributes(dot, { cx: point.x.toFixed(1), cy: point.y.toFixed(1) });
      if (part < 1 && path.isConnected) requestAnimationFrame(step);
      else dot.remove();
    };
    requestAnimationFrame(step);
  }

  #newHub(hub) {
    const choose = () => this.#onPool(hub.id);
    return svg(
      "g.hub",
      { tabindex: 0, role: "button", onclick: choose, onkeydown: (event) => event.key === "Enter" && choose() },
      svg("rect", { rx: 12, height: 46 }),
      svg("text.hub-name"),
      svg("text.hub-note"),
      svg("title"),
    );
  }
}

const dim = (hub, chosen) => (chosen && chosen !== hub.id ? "dim" : "");

function nodesOf(model) {
  const self = model.status.node.id;
  const nodes = new Map([[self, { id: self, self: true, connected: true, note: "this node" }]]);
  for (const peer of model.peers) {
    nodes.set(peer.agent_id, { id: peer.agent_id, connected: true, relayed: peer.relayed, note: peer.relayed ? "through a relay" : "" });
  }
  for (const { detail } of model.pools) {
    for (const member of detail?.member_list ?? []) {
      if (!nodes.has(member.agent_id)) nodes.set(member.agent_id, { id: member.agent_id, note: "not connected" });
    }
  }
  const [first, ...others] = nodes.values();
  // in the order of ids, so that a node keeps its place
  others.sort((one, other) => Number(other.connected ?? false) - Number(one.connected ?? false) || (one.id < other.id ? -1 : 1));
  const shown = [first, ...others.slice(0, NODES_MAX - 1)];
  const left = nodes.size - shown.length;
  for (const node of shown) {
    node.name = model.names.of(node.id);
    node.named = model.names.known(node.id);
  }
  if (left > 0) shown[0].note = `this node · ${plural(left, "node")} not drawn`;
  return shown;
}

function placed(nodes) {
  const step = (2 * Math.PI) / nodes.length;
  const ring = nodes.map((node, index) => {
    const angle = -Math.PI / 2 + index * step;
    return { ...node, angle, x: Math.cos(angle), y: Math.sin(angle) };
  });
  // a ring of few nodes is not as high as it is wide; it should fill the picture all the same
  const low = Math.min(...ring.map(({ y }) => y));
  const high = Math.max(...ring.map(({ y }) => y));
  const wide = Math.max(0.5, ...ring.map(({ x }) => Math.abs(x)));
  for (const node of ring) {
    node.x = CENTRE.x + (Math.min(265 / wide, 300) * node.x);
    node.y = high > low ? TOP + ((BOTTOM - TOP) * (node.y - low)) / (high - low) : TOP;
  }
  return ring;
}

function hubsOf(model, nodes) {
  const drawn = new Set(nodes.map((node) => node.id));
  const shown = model.pools.filter((pool) => pool.detail).slice(0, HUBS_MAX);
  const slots = SLOTS[shown.length - 1];
  return shown.map(({ item, detail, hue }, index) => {
    return {
      id: item.id,
      hue,
      members: detail.member_list.filter((member) => drawn.has(member.agent_id)),
      name: cut(item.name),
      note: `epoch ${detail.epoch} · ${plural(item.electors, "elector")}`,
      full: item.name,
      quorum: item.has_quorum,
      x: CENTRE.x + slots[index][0],
      y: CENTRE.y + slots[index][1],
    };
  });
}

// A curve between two points that bends away from the centre, or with a negative number towards it.
function bow(from, to, bend) {
  const middle = { x: (from.x + to.x) / 2, y: (from.y + to.y) / 2 };
  const length = Math.hypot(to.x - from.x, to.y - from.y);
  const away = { x: middle.x - CENTRE.x, y: middle.y - CENTRE.y };
  const far = Math.hypot(away.x, away.y) || 1;
  const x = middle.x + (away.x / far) * bend * length;
  const y = middle.y + (away.y / far) * bend * length;
  return `M${from.x.toFixed(1)} ${from.y.toFixed(1)}Q${x.toFixed(1)} ${y.toFixed(1)} ${to.x.toFixed(1)} ${to.y.toFixed(1)}`;
}

function drawHub(group, hub, chosen) {
  const [box, name, note, title] = group.children;
  const width = Math.max(hub.name.length * 8, hub.note.length * 6.3) + 28;
  setAttributes(group, {
    class: `hub hue-${hub.hue} ${dim(hub, chosen)} ${hub.quorum === false ? "weak" : ""}`,
    transform: `translate(${hub.x.toFixed(1)} ${hub.y.toFixed(1)})`,
  });
  setAttributes(box, { x: -width / 2, y: -23, width });
  setAttributes(name, { y: -3 });
  setAttributes(note, { y: 13 });
  setText(name, hub.name);
  setText(note, hub.note);
  setText(title, hub.quorum === false ? `${hub.full}: no quorum of electors is connected` : hub.full);
}

function newNode() {
  return svg("g", null, svg("circle.halo"), svg("circle.body"), svg("text.mono"), svg("text.node-name"), svg("text.node-note"), svg("title"));
}

function drawNode(group, node) {
  const [halo, body, digits, name, note, title] = group.children;
  const radius = node.self ? 25 : 20;
  const side = Math.abs(Math.sin(node.angle)) < 0.35 ? Math.sign(Math.cos(node.angle)) : 0;
  const above = Math.sin(node.angle) < 0;
  const lines = node.note ? 2 : 1;
  const y = side ? (lines === 2 ? -2 : 4) : above ? -radius - (lines === 2 ? 23 : 9) : radius + 18;
  const anchor = side ? (side > 0 ? "start" : "end") : "";
  setAttributes(group, {
    class: ["node", node.self && "self", !node.connected && "away"].filter(Boolean).join(" "),
    transform: `translate(${node.x.toFixed(1)} ${node.y.toFixed(1)})`,
  });
  setAttributes(halo, { r: radius + 7 });
  setAttributes(body, { r: radius });
  setAttributes(digits, { y: 4 });
  setAttributes(name, { class: `node-name ${anchor}`, x: side * (radius + 10), y });
  setAttributes(note, { class: `node-note ${anchor}`, x: side * (radius + 10), y: y + 15 });
  setText(digits, short(node.id).slice(0, 4));
  setText(name, cut(node.name));
  setText(note, node.note);
  setText(title, node.named ? `${node.name} · ${node.id}` : node.id);
}
