/*
 * A peer of js-libp2p for `test_js_interop.py` and `bench_net.py`: it does what it is told, one JSON line for each order.
 *
 * Knows: the public interface of js-libp2p 3. Must not know: the other side.
 * Source: js-libp2p's documentation; its defaults, but for what is said here: the protocol of this project's hash table,
 * and message ids as py-libp2p and go-libp2p make them, author and number, where the default takes the key.
 */
import { createInterface } from 'node:readline'
import { gossipsub } from '@libp2p/gossipsub'
import { identify } from '@libp2p/identify'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { noise } from '@libp2p/noise'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'

// Node 20 lacks what a library far below takes from Node 22
Promise.withResolvers ??= () => {
  const deferred = {}
  deferred.promise = new Promise((resolve, reject) => Object.assign(deferred, { resolve, reject }))
  return deferred
}

const ECHO = '/bench/echo/1'
const SINK = '/bench/sink/1'
const DATA = 'bench-data'
const ACKS = 'bench-acks'
const ACK_EVERY = 16

const text = new TextEncoder()
const plain = new TextDecoder()

function big (number) {
  const bytes = new Uint8Array(8)
  new DataView(bytes.buffer).setBigUint64(0, BigInt(number))
  return bytes
}

function number (bytes) {
  return Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0))
}

// records are numbers in decimal; the higher replaces the lower
function rank (value) {
  const written = plain.decode(value)
  if (!/^[0-9]+$/.test(written)) throw new Error(`${written} is no number`)
  return Number(written)
}

const node = await createLibp2p({
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  // or the sixth connection of a second is refused
  connectionManager: { inboundConnectionThreshold: Infinity },
  services: {
    identify: identify(),
    ping: ping(),
    pubsub: gossipsub({
      msgIdFn: (message) => {
        const author = message.from.toMultihash().bytes
        const id = new Uint8Array(author.length + 8)
        id.set(author)
        id.set(big(message.sequenceNumber), author.length)
        return id
      }
    }),
    dht: kadDHT({
      protocol: '/converge/kad/1.0.0',
      clientMode: false,
      peerInfoMapper: passthroughMapper,
      validators: { number: async (key, value) => { rank(value) } },
      selectors: { number: (key, values) => values.reduce((best, value, index) => rank(value) > rank(values[best]) ? index : best, 0) }
    })
  }
})

// reads so many bytes of a stream at a time
class Reader {
  #parts = []
  #length = 0
  #wake = () => {}
  #ended = false

  constructor (stream) {
    stream.addEventListener('message', ({ data }) => {
      this.#parts.push(data.subarray())
      this.#length += data.byteLength
      this.#wake()
    })
    const end = () => { this.#ended = true; this.#wake() }
    stream.addEventListener('remoteCloseWrite', end)
    stream.addEventListener('close', end)
  }

  async exactly (count) {
    while (this.#length < count) {
      if (this.#ended) throw new Error('the stream ended')
      await new Promise((resolve) => { this.#wake = resolve })
    }
    const all = this.#parts.length === 1 ? this.#parts[0] : Buffer.concat(this.#parts)
    this.#parts = all.length > count ? [all.subarray(count)] : []
    this.#length -= count
    return all.subarray(0, count)
  }
}

async function send (stream, bytes) {
  if (!stream.send(bytes)) await stream.onDrain()
}

await node.handle(ECHO, (stream) => {
  stream.addEventListener('message', ({ data }) => stream.send(data))
  stream.addEventListener('remoteCloseWrite', () => stream.close().catch(() => {}))
}, { maxInboundStreams: 64 })

await node.handle(SINK, (stream) => {
  let left = null
  stream.addEventListener('message', ({ data }) => {
    left ??= 8 + number(data.subarray(0, 8))
    left -= data.byteLength
    if (left === 0) stream.send(text.encode('.'))
  })
})

const heard = {}
let peer = null
let received = 0
let acknowledged = 0
let latencies = []
let changed = () => {}

node.services.pubsub.addEventListener('message', ({ detail: { topic, data } }) => {
  if (topic === DATA) {
    received += 1
    latencies.push((Number(process.hrtime.bigint()) - number(data)) / 1e6)
    if (received % ACK_EVERY === 0) node.services.pubsub.publish(ACKS, big(received)).catch(() => {})
  } else if (topic === ACKS) {
    acknowledged = Math.max(acknowledged, number(data))
    changed()
  } else {
    (heard[topic] ??= []).push(plain.decode(data))
  }
})

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms))
const until = async (condition) => { while (!(await condition())) await pause(20) }
const processorS = () => process.cpuUsage().user / 1e6 + process.cpuUsage().system / 1e6
const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1] ?? 0

const orders = {
  async connect ({ address }) {
    const began = performance.now()
    const connection = await node.dial(multiaddr(address))
    peer = connection.remotePeer
    return { ms: performance.now() - began }
  },
  async disconnect () {
    await node.hangUp(peer)
    return {}
  },
  async peers () {
    return { peers: node.getPeers().map(String) }
  },
  async connections () {
    return { connections: node.getConnections().map(({ id }) => id) }
  },
  async ping ({ address }) {
    return { ms: await node.services.ping.ping(multiaddr(address)) }
  },
  // waits until identify has told that the peer speaks a protocol; before that, only what it was heard to speak is known
  async identified ({ id, protocol }) {
    let found
    await until(async () => {
      found = (await node.peerStore.all()).find((each) => each.id.toString() === id)
      return found?.protocols.includes(protocol)
    })
    return { protocols: found.protocols }
  },
  async echo ({ address, size }) {
    const stream = await node.dialProtocol(multiaddr(address), '/test/echo/1')
    const reader = new Reader(stream)
    const bytes = new Uint8Array(size).map((_, index) => index % 251)
    const [answer] = await Promise.all([reader.exactly(size), (async () => {
      for (let start = 0; start < size; start += 60000) await send(stream, bytes.subarray(start, start + 60000))
    })()])
    await stream.close()
    return { same: Buffer.compare(answer, bytes) === 0 }
  },
  async subscribe ({ topic }) {
    node.services.pubsub.subscribe(topic)
    return {}
  },
  async subscribers ({ topic }) {
    await until(() => node.services.pubsub.getSubscribers(topic).length)
    return {}
  },
  async say ({ topic, said }) {
    await node.services.pubsub.publish(topic, text.encode(said))
    return {}
  },
  async heard ({ topic, count }) {
    await until(() => (heard[topic] ?? []).length >= count)
    return { heard: heard[topic] }
  },
  async table () {
    await until(() => node.services.dht.routingTable.size > 0)
    return {}
  },
  async put ({ key, value }) {
    let failed = null
    const accepted = []
    try {
      for await (const event of node.services.dht.put(text.encode(key), text.encode(value))) {
        if (event.name === 'PEER_RESPONSE' && event.messageName === 'PUT_VALUE') accepted.push(event.from.toString())
      }
    } catch (error) {
      failed = error.message
    }
    return { failed, accepted }
  },
  // sends a record past the own validator, as a peer with other ideas would
  async force ({ key, value, address }) {
    const { Message } = await import('./node_modules/@libp2p/kad-dht/dist/src/message/dht.js')
    const { Libp2pRecord } = await import('@libp2p/record')
    const record = new Libp2pRecord(text.encode(key), text.encode(value), new Date()).serialize()
    const body = Message.encode({ type: 'PUT_VALUE', key: text.encode(key), record, closer: [], providers: [] })
    const stream = await node.dialProtocol(multiaddr(address), '/converge/kad/1.0.0')
    const length = []
    for (let left = body.length; ; left >>= 7) {
      length.push(left > 127 ? (left & 127) | 128 : left)
      if (left <= 127) break
    }
    const reader = new Reader(stream)
    await send(stream, Uint8Array.from([...length, ...body]))
    try {
      await reader.exactly(1)
      return { answered: true }
    } catch {
      return { answered: false }
    }
  },
  async get ({ key }) {
    try {
      for await (const event of node.services.dht.get(text.encode(key))) {
        if (event.name === 'VALUE') return { value: plain.decode(event.value) }
      }
    } catch (error) {
      return { value: null, failed: error.message }
    }
    return { value: null }
  },
  async listen () {
    node.services.pubsub.subscribe(DATA)
    node.services.pubsub.subscribe(ACKS)
    return {}
  },
  async ready ({ topic }) {
    return orders.subscribers({ topic })
  },
  async publish ({ count, size, window, pause_ms: pauseMs }) {
    const first = acknowledged
    const began = performance.now()
    const used = processorS()
    const data = new Uint8Array(size)
    const target = Math.floor(count / ACK_EVERY) * ACK_EVERY
    for (let index = 0; index < count; index++) {
      while (!pauseMs && index - (acknowledged - first) >= window) await new Promise((resolve) => { changed = resolve })
      data.set(big(process.hrtime.bigint()))
      await node.services.pubsub.publish(DATA, data.slice())
      if (pauseMs) await pause(pauseMs)
    }
    const end = performance.now() + 10000
    while (acknowledged - first < target && performance.now() < end) await pause(1)
    return { seconds: (performance.now() - began) / 1000, processor_s: processorS() - used }
  },
  async report () {
    const answer = { count: latencies.length, p50_ms: median(latencies), processor_s: processorS() }
    latencies = []
    return answer
  },
  async requests ({ count, size }) {
    const stream = await node.dialProtocol(peer, ECHO)
    const reader = new Reader(stream)
    const bytes = new Uint8Array(size)
    const times = []
    for (let index = 0; index < count; index++) {
      const began = performance.now()
      await send(stream, bytes)
      await reader.exactly(size)
      times.push(performance.now() - began)
    }
    stream.abort(new Error('done'))
    times.sort((a, b) => a - b)
    return { p50_ms: median(times), p99_ms: times[Math.floor(count * 0.99)] }
  },
  async bulk ({ size, piece }) {
    const stream = await node.dialProtocol(peer, SINK)
    const reader = new Reader(stream)
    const bytes = new Uint8Array(piece)
    const began = performance.now()
    await send(stream, big(size))
    for (let sent = 0; sent < size; sent += piece) await send(stream, bytes)
    await reader.exactly(1)
    const seconds = (performance.now() - began) / 1000
    stream.abort(new Error('done'))
    return { mb_per_s: size / seconds / 1e6 }
  }
}

const speak = (answer) => process.stdout.write(`${JSON.stringify(answer)}\n`)

speak({ address: node.getMultiaddrs()[0].toString(), id: node.peerId.toString() })
for await (const line of createInterface({ input: process.stdin })) {
  const order = JSON.parse(line)
  try {
    speak(await orders[order.do](order))
  } catch (error) {
    speak({ error: `${error.name}: ${error.message}` })
  }
}
await node.stop()
process.exit(0)
