/*
 * A peer of js-libp2p in a private network, for `test_private_network.py`: pings the address it is given, or waits to be found.
 *
 * Knows: the public interface of js-libp2p 3. Must not know: the other side.
 */
import { identify } from '@libp2p/identify'
import { noise } from '@libp2p/noise'
import { ping } from '@libp2p/ping'
import { preSharedKey } from '@libp2p/pnet'
import { tcp } from '@libp2p/tcp'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import { readFileSync } from 'node:fs'
import { createLibp2p } from 'libp2p'

Promise.withResolvers ??= function () {
  let resolve, reject
  const promise = new Promise((r, j) => { resolve = r; reject = j })
  return { promise, resolve, reject }
}
const [key, address] = process.argv.slice(2)
const host = await createLibp2p({
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp()], connectionEncrypters: [noise()], streamMuxers: [yamux()],
  connectionProtector: preSharedKey({ psk: readFileSync(key) }),
  services: { ping: ping(), identify: identify() },
})
if (address === undefined) {
  host.addEventListener('peer:connect', (event) => console.log('met ' + event.detail.toString()))
  console.log(host.getMultiaddrs()[0].toString())
  await new Promise((resolve) => process.stdin.on('close', resolve).resume())
  process.exit(0)
}
try {
  await host.services.ping.ping(multiaddr(address), { signal: AbortSignal.timeout(15000) })
  console.log('pong ' + host.peerId.toString())
} catch (error) {
  console.log('refused')
}
await host.stop()
process.exit(0)
