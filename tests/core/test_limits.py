"""What has to hold between bounds: what one lets through, the next one takes."""

from __future__ import annotations

from converge_p2p.core import limits


def test_what_one_bound_lets_through_the_next_one_takes():
    assert limits.TASK_INPUT_BYTES_MAX + 8 * limits.TEXT_BYTES_MAX < limits.OPERATION_BYTES_MAX
    assert limits.RESULT_BYTES_MAX + limits.ELECTORS_MAX * 40 + 4096 < limits.OPERATION_BYTES_MAX
    assert limits.BIDS_PER_AUCTION_MAX * 72 + 4096 < limits.OPERATION_BYTES_MAX
    assert (
        limits.OPTIONS_PER_POLL_MAX * (limits.NAME_BYTES_MAX + 3) + limits.ELECTORATE_MAX * 40 + 4096
        < limits.OPERATION_BYTES_MAX
    )
    assert limits.TERMS_BYTES_MAX + limits.PARTIES_PER_SESSION_MAX * 40 + 4096 < limits.OPERATION_BYTES_MAX
    assert limits.MOTION_PAYLOAD_BYTES_MAX + 2 * limits.TEXT_BYTES_MAX < limits.OPERATION_BYTES_MAX
    assert limits.ADMISSION_NEED_MAX * 112 + 8 < limits.ADMISSION_PROOF_BYTES_MAX
    assert limits.INVITATION_BYTES_MAX <= limits.ADMISSION_PROOF_BYTES_MAX
    assert 32 + limits.JOIN_NOTE_BYTES_MAX + 16 < limits.JOIN_REQUEST_BYTES_MAX
    assert limits.INVITATION_BYTES_MAX + limits.JOIN_REQUEST_BYTES_MAX < limits.DIRECT_BYTES_MAX
    assert limits.JOIN_REQUESTS_PER_KEY_MAX <= limits.JOIN_REQUESTS_PER_POOL_MAX <= limits.JOIN_REQUESTS_MAX
    assert 4 * limits.JOIN_REQUESTS_PER_HOST_MAX <= limits.JOIN_REQUESTS_PER_POOL_MAX
    assert (
        limits.INVITATION_TOPICS_MAX * (limits.TOPIC_BYTES_MAX + 64) + limits.INVITATION_BYTES_MAX + 1024
        < limits.INVITATION_LINE_BYTES_MAX
    )
    assert limits.ADDRESSES_PER_PEER_MAX * (limits.ADDRESS_BYTES_MAX + 3) + 8192 < limits.INVITATION_LINE_BYTES_MAX
    assert limits.CONTENT_KEY_ENTRIES_MAX * 117 + 1024 < limits.OPERATION_BYTES_MAX
    assert limits.ELECTORS_MAX * (limits.CONTENT_GENERATION_MAX + 1) < limits.CONTENT_KEYS_HELD_MAX
    assert limits.OPERATION_BYTES_MAX <= limits.BATCH_BYTES_MAX < limits.SYNC_FRAME_BYTES_MAX
    assert limits.CHECKPOINT_AUTHORS_MAX * 78 + limits.CHECKPOINT_VOTES_MAX * 34 + 1024 < limits.OPERATION_BYTES_MAX
    assert limits.SNAPSHOT_CHUNK_BYTES + 1024 < limits.SYNC_FRAME_BYTES_MAX
    assert (
        limits.OPERATION_BYTES_MAX + limits.ELECTORS_MAX * 512 + limits.SNAPSHOT_CHUNKS_MAX * 34
        < limits.SYNC_FRAME_BYTES_MAX
    )
    assert (
        limits.RANGE_PARTS_PER_MESSAGE_MAX * 64 + limits.FRONTIER_ENTRIES_PER_MESSAGE_MAX * 128
        < limits.SYNC_FRAME_BYTES_MAX
    )
    assert limits.FRONTIER_WHOLE_AUTHORS_MAX <= limits.FRONTIER_ENTRIES_PER_MESSAGE_MAX
    assert limits.OPERATIONS_PER_PIECE_MIN <= limits.PARKED_PER_AUTHOR_MAX // 2
    # one answer fits into what an author may have parked, and all that is asked for ahead into what anybody may
    assert limits.ANSWER_BATCHES_MAX * limits.BATCH_BYTES_MAX * 2 <= limits.PARKED_BYTES_PER_AUTHOR_MAX
    assert limits.ANSWER_BATCHES_MAX * limits.BATCH_BYTES_MAX * limits.PIECES_AHEAD_MAX <= limits.PARKED_BYTES_MAX // 2
    assert (
        limits.EXCHANGED_PEERS_MAX * limits.ADDRESSES_PER_PEER_MAX * (limits.ADDRESS_BYTES_MAX + 3)
        < limits.EXCHANGE_BYTES_MAX
    )
    # a sealed blob has sixteen bytes more in each chunk
    assert limits.BLOB_BYTES_MAX <= limits.BLOB_CHUNKS_MAX * (limits.BLOB_CHUNK_BYTES - 16)
    assert limits.BLOB_VALUE_BYTES_MAX <= limits.BLOB_BYTES_MAX <= limits.BLOB_STORE_BYTES_MAX
    assert limits.BLOB_CHUNKS_MAX * 32 + 64 < limits.BLOB_CHUNK_BYTES
    assert limits.BLOB_PARTS_MAX * (limits.NAME_BYTES_MAX + 160) < limits.TASK_INPUT_BYTES_MAX // 8
    assert limits.BLOB_STREAMS_PER_PEER_MAX <= limits.BLOB_STREAMS_MAX
    # no address has all places, and a peer takes from an honest relay what that passes on
    assert limits.HANDSHAKES_PER_HOST_MAX < limits.HANDSHAKES_MAX
    assert limits.CONNECTIONS_PER_HOST_MAX < limits.PEERS_MAX
    assert limits.RELAY_CIRCUITS_PER_PEER_MAX <= limits.CIRCUITS_PER_RELAY_MAX < limits.CIRCUITS_OWN_MAX
    # a whole turn of honest streams fits into what one connection may hold, and what is held is more than one window
    assert limits.INBOUND_STREAMS_PER_PEER_MAX <= limits.STREAMS_INBOUND_MAX
    assert 2 * limits.STREAM_WINDOW_BYTES_MAX <= limits.STREAM_BUFFERS_BYTES_MAX
    assert limits.STREAM_WINDOW_BYTES_MAX >= 256 * 1024
    # answers that need no room in the queue: one for each ping, stream and refusal of a burst, of twelve bytes
    assert (
        limits.PINGS_BURST_MAX + limits.STREAM_OPENS_PER_SECOND_MAX + limits.STREAM_REFUSALS_BURST_MAX
    ) * 12 < limits.WRITE_QUEUE_CONTROL_BYTES_MAX
    assert limits.KEEPALIVE_INTERVAL_S <= limits.KEEPALIVE_TIMEOUT_S
    assert (
        limits.RELAYS_USED_MAX * limits.RELAY_ADDRESSES_MAX + limits.REACH_ADDRESSES_CONFIRMED_MAX
        < limits.ADDRESSES_PER_PEER_MAX
    )
    assert limits.RELAY_CIRCUITS_PER_PEER_MAX < limits.INBOUND_STREAMS_PER_PEER_MAX
    assert limits.RELAY_CIRCUITS_PER_PEER_MAX <= limits.RELAY_CIRCUITS_MAX
    assert limits.RELAY_RESERVATIONS_MAX <= limits.PEERS_MAX
    assert limits.ADDRESSES_PER_PEER_MAX * 260 + 512 < limits.MDNS_PACKET_BYTES_MAX
    assert limits.GOSSIP_BATCH_BYTES_MAX < limits.GOSSIP_DATA_BYTES_MAX < limits.GOSSIP_RPC_BYTES_MAX
    assert limits.MESSAGE_BYTES_MAX < limits.DIRECT_BYTES_MAX
    assert limits.MESSAGE_BYTES_MAX < limits.GOSSIP_DATA_BYTES_MAX
    assert limits.REPLAY_ENTRIES_PER_SENDER_MAX < limits.REPLAY_ENTRIES_MAX
    assert limits.REPLAY_ENTRIES_MAX * 80 + 4096 < limits.STORE_VALUE_BYTES_MAX
    assert limits.MAIL_BATCH_MAX <= limits.MAIL_WAITING_MAX
    assert limits.REPLAY_LOG_ENTRY_BYTES_MAX <= limits.STORE_VALUE_BYTES_MAX
    assert limits.MESSAGE_BYTES_MAX <= limits.STORE_VALUE_BYTES_MAX
    assert limits.DESCRIPTOR_BYTES_MAX <= limits.DHT_RECORD_BYTES_MAX
    assert limits.DESCRIPTOR_BYTES_MAX < limits.GOSSIP_DATA_BYTES_MAX
    assert limits.DESCRIPTOR_BYTES_MAX < limits.BATCH_BYTES_MAX < limits.SYNC_FRAME_BYTES_MAX
    assert limits.DESCRIPTORS_SHELF_BYTES_MAX < limits.STORE_VALUE_BYTES_MAX
    assert limits.DESCRIPTORS_PER_ROUND_MAX <= limits.DESCRIPTORS_PER_PEER_BURST_MAX
    assert limits.AGENT_ENTRIES_PER_ANSWER_MAX * 64 < limits.SYNC_FRAME_BYTES_MAX
    assert limits.DESCRIPTOR_TOPICS_MAX + limits.DESCRIPTOR_CAPABILITIES_MAX <= limits.DHT_CLAIMS_PER_PEER_MAX
    assert limits.DHT_CLAIMS_PER_KEY_MAX <= limits.DHT_CLAIMS_MAX
    assert limits.DHT_CLAIM_KEYS_MAX <= limits.DHT_CLAIMS_MAX
    assert limits.MESSAGE_CLOCK_SKEW_MS < limits.MESSAGE_TTL_MS <= limits.MESSAGE_TTL_MS_MAX
    assert limits.MESSAGE_TOPICS_MAX * limits.TOPIC_BYTES_MAX + 4096 < limits.MESSAGE_BYTES_MAX
    assert limits.CONTROL_STREAMS_MAX + limits.CONTROL_REQUESTS_MAX < limits.CONTROL_CONNECTIONS_MAX
    assert limits.FORMULA_PARTS_MAX * 40 < limits.FORMULA_BYTES_MAX
    assert limits.GRANT_TIMER_MS <= limits.GRANT_TIMER_MS_MAX
    assert limits.CLAIM_TTL_MS_MIN <= limits.CLAIM_TTL_MS <= limits.CLAIM_TTL_MS_MAX
    assert limits.RENEWAL_NOTE_BYTES_MAX + 256 < limits.RENEWAL_BYTES_MAX < limits.GOSSIP_DATA_BYTES_MAX
