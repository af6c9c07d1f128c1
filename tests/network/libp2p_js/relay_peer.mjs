/*
 * A peer of js-libp2p at a relay, for `test_js_relay.py`. The first word says what it is:
 * `relay`: serves as a relay, and says where; `hidden <relay>`: reserves a place at a relay, says where it is reached, and waits;
 * `visitor <address>`: pings an address that leads through a relay.
 *
 * Knows: the public interface of js-libp2p 3. Must not know: the other side.
 */
import { circuitRelayServer, circuitRelayTransport } from '@libp2p/circuit-relay-v2'
import { identify } from '@libp2p/identify'
import { noise } from '@libp2p/noise'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'

Promise.withResolvers ??= function () {
  let resolve, reject
  const promise = new Promise((r, j) => { resolve = r; reject = j })
  return { promise, resolve, reject }
}
const [role, address] = process.argv.slice(2)
const services = { ping: ping({ runOnLimitedConnection: true }), identify: identify({ runOnLimitedConnection: true }) }
if (role === 'relay') {
  services.relay = circuitRelayServer({ reservations: { applyDefaultLimit: false } })
}
const host = await createLibp2p({
  addresses: { listen: role === 'hidden' ? [address + '/p2p-circuit'] : role === 'relay' ? ['/ip4/127.0.0.1/tcp/0'] : [] },
  transports: [tcp(), circuitRelayTransport()], connectionEncrypters: [noise()], streamMuxers: [yamux()],
  // the addresses of this test are all of one machine
  connectionGater: { denyDialMultiaddr: () => false },
  services,
})
host.addEventListener('peer:connect', (event) => console.log('met ' + event.detail.toString()))
if (role === 'visitor') {
  try {
    await host.services.ping.ping(multiaddr(address), { signal: AbortSignal.timeout(20000) })
    console.log('pong')
  } catch (error) {
    console.log('failed ' + error.message.replaceAll('\n', ' '))
  }
  await host.stop()
  process.exit(0)
}
const reached = () => host.getMultiaddrs().map(String).find((text) => role === 'relay' || text.includes('/p2p-circuit'))
while (reached() === undefined) {
  await new Promise((resolve) => host.addEventListener('self:peer:update', resolve, { once: true }))
}
console.log('at ' + reached())
await new Promise((resolve) => process.stdin.on('close', resolve).resume())
process.exit(0)
