// How ids, numbers and times are written.

const ID = /\b(?:[0-9a-f]{64}|[0-9a-f]{12})\b/g;
const PREFIX_DIGITS = 12; // as the node itself writes ids in its sentences

export const short = (id) => String(id ?? "").slice(0, 8);

export const count = (number) => Number(number ?? 0).toLocaleString("en");

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

export function duration(seconds) {
  let left = Math.floor(seconds);
  const parts = [];
  for (const [name, size] of [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]]) {
    const number = Math.floor(left / size);
    left -= number * size;
    if (number || (name === "s" && !parts.length)) parts.push(`${number} ${name}`);
  }
  return parts.slice(0, 2).join(" ");
}

export function clock(text) {
  const time = new Date(text);
  return Number.isNaN(time.getTime()) ? "" : time.toLocaleTimeString("en-GB");
}

// Names of agents as they call themselves: anybody can take any name, so the id always stands beside it somewhere.
export class Names {
  #names = new Map();
  #prefixes = new Map();

  learn(agents) {
    for (const { id, name } of agents) {
      if (!name) continue;
      this.#names.set(id, name);
      this.#prefixes.set(id.slice(0, PREFIX_DIGITS), name);
    }
  }

  of(id) {
    return this.#names.get(id) ?? short(id);
  }

  known(id) {
    return this.#names.has(id);
  }

  // Text of the node, with ids in it made short, and with names where they are known.
  in(text) {
    return String(text ?? "").replace(ID, (id) => (id.length === PREFIX_DIGITS ? (this.#prefixes.get(id) ?? id) : this.of(id)));
  }
}

export const titled = (text) => text.charAt(0).toUpperCase() + text.slice(1).replaceAll("_", " ");
