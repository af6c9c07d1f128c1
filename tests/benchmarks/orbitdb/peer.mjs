/*
 * A peer of OrbitDB 3 for `bench_orbitdb.py`: it appends events, serves them, or fetches them as a newcomer.
 *
 * Knows: OrbitDB's public interface, Helia, libp2p. Must not know: the other side of the comparison.
 * Source: OrbitDB's README and docs/GETTING_STARTED.md, with their LevelBlockstore, so that entries survive the process.
 * Helia is put together from its own parts as `createHelia` does, without WebRTC and the gateways of the public network:
 * loopback does not need them, and they would have to be compiled.
 *
 * Usage: node peer.mjs FOLDER shipped|synced. Speaks JSON lines, one answer for each order. `synced` makes LevelDB call
 * fdatasync before it answers a write; OrbitDB never asks for that.
 */
import { createInterface } from 'node:readline'
import { gossipsub } from '@chainsafe/libp2p-gossipsub'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { bitswap } from '@helia/block-brokers'
import { Helia } from '@helia/utils'
import { identify } from '@libp2p/identify'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { createOrbitDB } from '@orbitdb/core'
import { LevelBlockstore } from 'blockstore-level'
import { ClassicLevel } from 'classic-level'
import { MemoryDatastore } from 'datastore-core'
import { createLibp2p } from 'libp2p'

// Node 20 lacks what a library far below libp2p takes from Node 22
Promise.withResolvers ??= () => {
  const deferred = {}
  deferred.promise = new Promise((resolve, reject) => Object.assign(deferred, { resolve, reject }))
  return deferred
}

const [folder, durability] = process.argv.slice(2)

if (durability === 'synced') {
  const isOptions = (value) => value?.constructor === Object
  for (const name of ['_put', '_batch', '_del']) {
    const plain = ClassicLevel.prototype[name]
    ClassicLevel.prototype[name] = function (...given) {
      return plain.apply(this, given.map((value) => isOptions(value) ? { ...value, sync: true } : value))
    }
  }
}

const libp2p = await createLibp2p({
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: { identify: identify(), pubsub: gossipsub({ allowPublishToZeroTopicPeers: true }) }
})
const ipfs = new Helia({
  libp2p,
  blockstore: new LevelBlockstore(`${folder}/blocks`),
  datastore: new MemoryDatastore(),
  blockBrokers: [bitswap()]
})
await ipfs.start()
const orbitdb = await createOrbitDB({ ipfs, directory: `${folder}/orbitdb` })
let database

/* Start to measure; the result says the seconds and the processor seconds since then. */
function measure () {
  const [began, used] = [process.hrtime.bigint(), process.cpuUsage()]
  return () => {
    const { user, system } = process.cpuUsage(used)
    return { seconds: Number(process.hrtime.bigint() - began) / 1e9, processor_s: (user + system) / 1e6 }
  }
}

/* What `open` does: make a database, or open one by its address. */
async function open ({ address }) {
  database = await orbitdb.open(address ?? 'bench', { type: 'events' })
  return { address: database.address }
}

/* Append events: one after another, each awaited, or all handed over at once. */
async function append ({ count, first, pipelined }) {
  const value = (number) => ({ kind: 'nobody does this', inputs: { number: first + number } })
  const measured = measure()
  if (pipelined) {
    await Promise.all(Array.from({ length: count }, (_, number) => database.add(value(number))))
  } else {
    for (let number = 0; number < count; number++) await database.add(value(number))
  }
  return measured()
}

/* As a newcomer that is already connected: fetch the whole log, and say what it cost and how much came. */
async function fetch ({ address, limit_s: limit }) {
  const measured = measure()
  database = await orbitdb.open(address)
  // the first update comes when the head was joined: every entry below it was then fetched, verified and indexed
  const done = await new Promise((resolve) => {
    database.events.once('update', () => resolve(true))
    setTimeout(resolve, limit * 1000, false)
  })
  const cost = measured()
  let entries = 0
  if (done) for await (const _ of database.log.traverse()) entries++
  return { ...cost, entries }
}

const orders = {
  open,
  append,
  fetch,
  dial: async ({ to }) => { await libp2p.dial(multiaddr(to)); return {} }
}

console.log(JSON.stringify({ listens: String(libp2p.getMultiaddrs()[0]) }))
for await (const line of createInterface({ input: process.stdin })) {
  const order = JSON.parse(line)
  console.log(JSON.stringify(await orders[order.do](order)))
}
await database?.close()
await orbitdb.stop()
await ipfs.stop()
process.exit(0)
