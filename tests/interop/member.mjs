/**
 * A member of another implementation: one exchange with a node of a federation, over js-libp2p.
 *
 * Written from docs/wire/ alone. It says hello, asks for a keyframe, verifies all that an honest reader has to, prints
 * one line of JSON and leaves. One JSON object on standard input tells it what to do:
 *
 *   seed          hex, 32 bytes: the Ed25519 seed of its key
 *   federation    name
 *   node          {"peer": the node's peer id, "address": "/ip4/127.0.0.1/tcp/PORT"}; no address where it listens
 *   incarnation   integer, or a string of digits where it is beyond 2^53
 *   layout        hex: digest of the model's layout
 *   initial       hex: digest of the initial replica
 *   timeout_s     seconds until it has a keyframe (20)
 *   hold_s        seconds for which it then stays, heartbeats and all (0); an error if its connection does not last
 *   listen        true: wait for the node to dial; prints {"listening": address, "peer": its peer id} first
 *   bulk          true: open the bulk lane, too (where it dials); false: refuse it (where it listens)
 *   advertise     addresses for an address record of its own; default: where it listens
 *   parameters    size of the model; default: what the keyframe holds
 */

import { readFileSync, realpathSync } from 'node:fs';
import { pathToFileURL } from 'node:url';
import { Decoder, Encoder } from '@msgpack/msgpack';
import { blake3 } from '@noble/hashes/blake3.js';

// js-libp2p 3 is made for Node 22; this function is all that it misses in Node 20, hence the late imports.
Promise.withResolvers ??= function () {
  const parts = {};
  parts.promise = new this((resolve, reject) => Object.assign(parts, { resolve, reject }));
  return parts;
};
const { createLibp2p } = await import('libp2p');
const { tcp } = await import('@libp2p/tcp');
const { noise } = await import('@chainsafe/libp2p-noise');
const { yamux } = await import('@libp2p/yamux');
const { generateKeyPairFromSeed } = await import('@libp2p/crypto/keys');
const { peerIdFromPrivateKey, peerIdFromPublicKey, peerIdFromString } = await import('@libp2p/peer-id');
const { PeerRecord, RecordEnvelope } = await import('@libp2p/peer-record');
const { multiaddr } = await import('@multiformats/multiaddr');

// ------------------------------------------------------------------------------------------------ messages

export const CHUNK_BYTES = 983040;
export const KIND = { hello: 1, delta: 2, keyframe: 3, request: 4, status: 5, grant: 6, bye: 7 };
const MAX_FRAME_BYTES = 2 ** 20;
const MAX_MAP_BYTES = 64 * 1024;
const MAX_CHUNKS = 1500;
const PREFIX_BYTES = 8;
const SIGNATURE_BYTES = 64;
const KEY_BYTES = 32;
const DIGEST_BYTES = 32;
const SIGNED_DOMAIN = Buffer.from('gossipfl/1/message');

/** A frame that a reader drops; the message is the name under which it is counted. */
export class Refused extends Error {}

const encoder = new Encoder({ useBigInt64: true });
const decoder = new Decoder({
  useBigInt64: true,
  maxArrayLength: 64,
  maxMapLength: 1024,
  maxStrLength: 1024,
  maxBinLength: 64 * 1024,
  maxExtLength: 0,
  mapKeyConverter: (key) => (key instanceof Uint8Array ? Buffer.from(key).toString('hex') : key),
});

export function pack(value) {
  return Buffer.from(encoder.encode(value));
}

function unpack(bytes) {
  try {
    return decoder.decode(bytes);
  } catch {
    throw new Refused('msgpack');
  }
}

/** Return what packs as the shortest unsigned integer. */
function uint(value) {
  return BigInt(value) < 2n ** 32n ? Number(value) : BigInt(value);
}

export function digest(...parts) {
  const hash = blake3.create();
  for (const part of parts) {
    hash.update(part);
  }
  return Buffer.from(hash.digest());
}

export function federationId(name) {
  return digest(Buffer.from('gossipfl federation id v1'), Buffer.from([0]), Buffer.from(name)).subarray(0, 16);
}

function binary(value, length, why = 'field') {
  if (!(value instanceof Uint8Array) || (length !== undefined && value.length !== length)) {
    throw new Refused(why);
  }
  return Buffer.from(value);
}

function counter(value, why = 'field') {
  if (typeof value !== 'bigint' && !Number.isSafeInteger(value)) {
    throw new Refused(why);
  }
  if (value < 0 || BigInt(value) >= 2n ** 63n) {
    throw new Refused(why);
  }
  return BigInt(value);
}

function isMap(value) {
  return typeof value === 'object' && value !== null && !Array.isArray(value) && !(value instanceof Uint8Array);
}

function optional(value, type, why) {
  if (value !== undefined && typeof value !== type) {
    throw new Refused(why);
  }
  if (type === 'string' && value !== undefined && [...value].length > 200) {
    throw new Refused(why);
  }
  return value;
}

function chunkCount(bodyBytes) {
  return bodyBytes <= CHUNK_BYTES ? 1 : Math.ceil(bodyBytes / CHUNK_BYTES);
}

function prefix(type, kind, header) {
  const bytes = Buffer.from([0x67, 0x66, 1, 0, type, kind, 0, 0]);
  bytes.writeUInt16LE(header.length, 6);
  return bytes;
}

/** Return the bytes of a body: a map, and behind it a payload. */
export function encodeBody(map, payload = Buffer.alloc(0)) {
  const packed = pack(map);
  const length = Buffer.alloc(4);
  length.writeUInt32LE(packed.length);
  return Buffer.concat([length, packed, payload]);
}

/** Sign a message; `from` has key, federation, incarnation. A body too long for the frame is only announced. */
export async function seal(from, sequence, recipient, kind, body) {
  const spans = Array.from({ length: chunkCount(body.length) }, (_, i) =>
    body.subarray(i * CHUNK_BYTES, (i + 1) * CHUNK_BYTES));
  const header = pack([
    from.federation,
    from.key.publicKey.raw,
    recipient,
    uint(from.incarnation),
    uint(sequence),
    body.length,
    Buffer.concat(spans.map((span) => digest(span))),
  ]);
  const head = Buffer.concat([prefix(0, kind, header), header]);
  const signature = await from.key.sign(Buffer.concat([SIGNED_DOMAIN, head]));
  return Buffer.concat([head, signature, spans.length === 1 ? body : Buffer.alloc(0)]);
}

/** Return the frame of one chunk of an announced body. */
export function sealChunk(from, sequence, index, body) {
  const header = pack([from.federation, from.key.publicKey.raw, uint(from.incarnation), uint(sequence), index]);
  const data = body.subarray(index * CHUNK_BYTES, (index + 1) * CHUNK_BYTES);
  return Buffer.concat([prefix(1, 0, header), header, data]);
}

/** Split a frame into its parts without believing any: the first step of reading. */
export function parse(frame) {
  if (frame.length > MAX_FRAME_BYTES) {
    throw new Refused('oversized');
  }
  if (frame.length < PREFIX_BYTES) {
    throw new Refused('truncated');
  }
  if (frame[0] !== 0x67 || frame[1] !== 0x66) {
    throw new Refused('magic');
  }
  if (frame[2] !== 1) {
    throw new Refused('version');
  }
  const headerEnd = PREFIX_BYTES + frame.readUInt16LE(6);
  if (frame.length < headerEnd) {
    throw new Refused('truncated');
  }
  const fields = unpack(frame.subarray(PREFIX_BYTES, headerEnd));
  if (!Array.isArray(fields)) {
    throw new Refused('msgpack');
  }
  const type = frame[4];
  if (type > 1) {
    throw new Refused('type');
  }
  if (fields.length < (type === 1 ? 5 : 7)) {
    throw new Refused('header');
  }
  const chunkBytes = frame.length - headerEnd;
  if (type === 1 && (chunkBytes === 0 || chunkBytes > CHUNK_BYTES)) {
    throw new Refused('length');
  }
  const federation = binary(fields[0], 16);
  const sender = binary(fields[1], KEY_BYTES);
  if (type === 1) {
    const [incarnation, sequence, index] = fields.slice(2, 5).map((field) => counter(field));
    return { chunk: true, federation, sender, incarnation, sequence, index, data: frame.subarray(headerEnd) };
  }
  const recipient = binary(fields[2]);
  if (recipient.length !== 0 && recipient.length !== KEY_BYTES) {
    throw new Refused('header');
  }
  const [incarnation, sequence, bodyBytes] = fields.slice(3, 6).map((field) => counter(field));
  const joined = binary(fields[6]);
  const count = chunkCount(Number(bodyBytes));
  if (count > MAX_CHUNKS || joined.length !== count * DIGEST_BYTES) {
    throw new Refused('header');
  }
  const bodyAt = headerEnd + SIGNATURE_BYTES;
  if (frame.length < bodyAt) {
    throw new Refused('truncated');
  }
  const inline = bodyBytes <= CHUNK_BYTES;
  if (frame.length - bodyAt !== (inline ? Number(bodyBytes) : 0)) {
    throw new Refused('length');
  }
  return {
    chunk: false,
    kind: frame[5],
    federation,
    sender,
    recipient,
    incarnation,
    sequence,
    bodyBytes: Number(bodyBytes),
    digests: Array.from({ length: count }, (_, i) => joined.subarray(i * DIGEST_BYTES, (i + 1) * DIGEST_BYTES)),
    signed: Buffer.concat([SIGNED_DOMAIN, frame.subarray(0, headerEnd)]),
    signature: frame.subarray(headerEnd, bodyAt),
    body: inline ? frame.subarray(bodyAt) : null,
  };
}

/** Read the body of a message that is believed. */
export function decodeBody(kind, body) {
  if (body.length < 4) {
    throw new Refused('offence-body');
  }
  const mapEnd = 4 + body.readUInt32LE(0);
  if (mapEnd > 4 + MAX_MAP_BYTES || mapEnd > body.length) {
    throw new Refused('offence-body');
  }
  let map;
  try {
    map = unpack(body.subarray(4, mapEnd));
  } catch {
    throw new Refused('offence-msgpack');
  }
  if (!isMap(map)) {
    throw new Refused('offence-msgpack');
  }
  const payload = body.subarray(mapEnd);
  if (payload.length !== 0 && kind !== KIND.delta && kind !== KIND.keyframe) {
    throw new Refused('offence-body');
  }
  const why = 'offence-field';
  const replica = () => ({
    version: counter(map.v, why),
    round: counter(map.r, why),
    digest: binary(map.d, DIGEST_BYTES, why),
  });
  switch (kind) {
    case KIND.hello:
      return {
        ...replica(),
        layout: binary(map.l, DIGEST_BYTES, why),
        initial: binary(map.i, DIGEST_BYTES, why),
        reply: optional(map.re, 'boolean', why) ?? false,
        agent: optional(map.a, 'string', why) ?? '',
      };
    case KIND.delta:
    case KIND.keyframe:
      return { ...replica(), codec: counter(map.c, why), acks: readAcks(map.k, why), payload };
    case KIND.request:
      return { have: map.h === null || map.h === undefined ? null : counter(map.h, why) };
    case KIND.status:
      return { ...replica(), acks: readAcks(map.k, why), done: optional(map.e, 'boolean', why) ?? false };
    case KIND.grant: {
      const [incarnation, sequence, first, count] = ['in', 's', 'f', 'n'].map((key) => counter(map[key], why));
      return { incarnation, sequence, first, count };
    }
    case KIND.bye:
      return { reason: optional(map.why, 'string', why) ?? '' };
    default:
      throw new Refused('kind');
  }
}

function readAcks(value, why) {
  const acks = new Map();
  if (value === undefined) {
    return acks;
  }
  if (!isMap(value)) {
    throw new Refused(why);
  }
  for (const [key, pair] of Object.entries(value)) {
    if (!/^[0-9a-f]{64}$/.test(key) || !Array.isArray(pair) || pair.length !== 2) {
      throw new Refused(why);
    }
    acks.set(key, pair.map((number) => counter(number, why)));
  }
  return acks;
}

/** Check a payload of the codec float32: whole numbers of elements, each zero or normal and at most 2^27. */
export function checkFloat32(payload, parameters) {
  if (payload.length % 4 !== 0 || (parameters !== undefined && payload.length !== 4 * parameters)) {
    throw new Refused('offence-codec');
  }
  for (let at = 0; at < payload.length; at += 4) {
    const magnitude = payload.readUInt32LE(at) & 0x7fffffff;
    if (magnitude > 0x4d000000 || (magnitude !== 0 && magnitude < 0x00800000)) {
      throw new Refused('offence-codec');
    }
  }
}

// ------------------------------------------------------------------------------------------------- streams

const PROTOCOL = '/gossipfl/1';
const CONTROL = 0;
const BULK = 1;
const TYPE_GOSSIP = 0;
const TYPE_RECORD = 1;
const AGENT = 'gossipfl-js/0';

/** A stream, read in pieces of wanted lengths. */
class Reader {
  constructor(stream) {
    this.pieces = stream[Symbol.asyncIterator]();
    this.held = [];
    this.length = 0;
  }

  /** Return the next `wanted` bytes; null where the stream ends before the first of them. */
  async take(wanted) {
    while (this.length < wanted) {
      const { done, value } = await this.pieces.next();
      if (done && this.length === 0) {
        return null;
      }
      if (done) {
        throw new Error('a stream ended within a frame');
      }
      this.held.push(value.subarray());
      this.length += value.byteLength;
    }
    const all = Buffer.concat(this.held);
    this.held = [all.subarray(wanted)];
    this.length -= wanted;
    return all.subarray(0, wanted);
  }

  async greeting() {
    const length = await this.take(2);
    const map = length && (await this.take(length.readUInt16BE(0)));
    if (!map) {
      throw new Error('a stream ended without a greeting');
    }
    const greeting = unpack(map);
    if (!isMap(greeting)) {
      throw new Error('the greeting is no map');
    }
    return greeting;
  }

  async *frames() {
    for (let head = await this.take(4); head; head = await this.take(4)) {
      const length = head.readUIntBE(1, 3);
      if (length > MAX_FRAME_BYTES) {
        throw new Error(`a frame of ${length} bytes`);
      }
      const payload = await this.take(length);
      if (!payload) {
        throw new Error('a stream ended within a frame');
      }
      yield { type: head[0], payload };
    }
  }
}

export function sendGreeting(stream, map) {
  const packed = pack(map);
  const length = Buffer.alloc(2);
  length.writeUInt16BE(packed.length);
  stream.send(Buffer.concat([length, packed]));
}

export function sendFrame(stream, type, payload) {
  const head = Buffer.from([type, 0, 0, 0]);
  head.writeUIntBE(payload.length, 1, 3);
  stream.send(Buffer.concat([head, payload]));
}

export { Reader };

// -------------------------------------------------------------------------------------------------- member

const HEARTBEAT_MS = 1000;
const REPLY_PAUSE_MS = 62;
const REORDER_MS = 125;
const RESYNC_MS = 250;
const RESYNC_MAX_MS = 5000;
const CREDIT_CHUNKS = 6;
const STALL_MS = 2000;
const MAX_STALLS = 4;
const MAX_BODY_BYTES = 256 * 2 ** 20; // where the size of the model is not known
const REPLAY_WINDOW = 1024n;
const HARMLESS = new Set(['replay', 'kind', 'chunk', 'assembly-twin', 'unsolicited-keyframe']);

/** One member, its one neighbour, and what they have said to each other. */
class Member {
  constructor(options, key, node) {
    this.options = options;
    this.key = key;
    this.node = node; // peer id
    this.nodeKey = Buffer.from(node.publicKey.raw);
    this.federation = federationId(options.federation);
    this.incarnation = BigInt(options.incarnation);
    this.layout = Buffer.from(options.layout, 'hex');
    this.initial = Buffer.from(options.initial, 'hex');
    this.sequence = 0n;
    this.instance = Buffer.from(crypto.getRandomValues(new Uint8Array(16)));
    this.control = null;
    this.nodeInstance = null;
    this.advertised = options.advertise ?? [];
    this.records = [];
    this.greetedAt = -Infinity;
    this.beatAt = -Infinity;
    this.seen = { incarnation: -1n, highest: -1n, sequences: new Set() };
    this.forget();
    this.outcome = Promise.withResolvers(); // the keyframe
    this.outcome.promise.catch(() => {});
    this.broken = Promise.withResolvers(); // the first error
    this.broken.promise.catch(() => {});
    this.reading = Promise.resolve();
  }

  /** What is held of the node goes with its incarnation. */
  forget() {
    this.joined = false;
    this.repliedAt = -Infinity;
    this.askAt = Infinity;
    this.askPause = RESYNC_MS;
    this.assembly = null;
    this.holds = false;
    this.chunks = 0;
    this.bulkChunks = 0;
  }

  get waitsFor() {
    if (this.control === null) {
      return 'the control lane';
    }
    if (!this.joined) {
      return "the node's hello";
    }
    if (this.holds) {
      return 'the end';
    }
    return this.assembly === null ? 'a keyframe' : 'chunks';
  }

  fail(error) {
    this.outcome.reject(error);
    this.broken.reject(error);
  }

  // ---------------------------------------------------------------------------------------------- lanes

  greeting(lane) {
    return { f: this.federation, i: this.instance, l: lane, m: 0, a: AGENT };
  }

  /** Return why a greeting will not do, or null. */
  flaw(greeting) {
    const { f, i, l, m, a } = greeting;
    if (!(f instanceof Uint8Array) || !this.federation.equals(f)) {
      return 'federation';
    }
    if (!(i instanceof Uint8Array) || i.length !== 16 || !Number.isInteger(m) || m < 0) {
      return 'malformed greeting';
    }
    if (l !== CONTROL && l !== BULK) {
      return 'lane';
    }
    if (a !== undefined && typeof a !== 'string') {
      return 'malformed greeting';
    }
    if (l === BULK && (this.nodeInstance === null || !this.nodeInstance.equals(i))) {
      return 'no control lane';
    }
    return null;
  }

  /** Open a lane on a connection that this side has dialled. */
  async open(connection, lane) {
    const stream = await connection.newStream(PROTOCOL);
    const reader = new Reader(stream);
    sendGreeting(stream, this.greeting(lane));
    const greeting = await reader.greeting();
    if (greeting.no !== undefined) {
      throw new Error(`the node refuses lane ${lane}: ${greeting.no}`);
    }
    const flaw = greeting.l !== lane ? 'the answer names another lane' : this.flaw(greeting);
    if (flaw !== null) {
      throw new Error(`the node's greeting: ${flaw}`);
    }
    await this.use(stream, reader, greeting);
  }

  /** Take a lane that the node has opened. */
  async accept(stream, connection) {
    const reader = new Reader(stream);
    const greeting = await reader.greeting();
    const stranger = !connection.remotePeer.equals(this.node);
    const unwanted = greeting.l === BULK && this.options.bulk === false;
    const flaw = stranger ? 'stranger' : unwanted ? 'lane' : this.flaw(greeting);
    if (flaw !== null) {
      sendGreeting(stream, { no: flaw });
      await stream.close();
      if (stranger || unwanted) {
        return;
      }
      throw new Error(`the node's greeting: ${flaw}`);
    }
    sendGreeting(stream, this.greeting(greeting.l));
    await this.use(stream, reader, greeting);
  }

  async use(stream, reader, greeting) {
    if (greeting.l === CONTROL) {
      this.nodeInstance = Buffer.from(greeting.i);
      this.control = stream;
      if (this.advertised.length > 0) {
        const record = new PeerRecord({
          peerId: peerIdFromPrivateKey(this.key),
          multiaddrs: this.advertised.map((address) => multiaddr(address)),
          seqNumber: this.incarnation,
        });
        sendFrame(stream, TYPE_RECORD, (await RecordEnvelope.seal(record, this.key)).marshal());
      }
    }
    this.listen(stream, reader, greeting.l).catch((error) => this.fail(error));
  }

  async listen(stream, reader, lane) {
    for await (const { type, payload } of reader.frames()) {
      // One frame at a time, whichever lane it came on.
      this.reading = this.reading.then(() => this.hear(type, payload, lane));
      await this.reading;
    }
    if (stream === this.control && !this.options.listen) {
      throw new Error(`the node closed the control lane while waiting for ${this.waitsFor}`);
    }
  }

  async hear(type, payload, lane) {
    if (type === TYPE_RECORD) {
      this.records.push(await readRecord(payload));
    } else if (type === TYPE_GOSSIP) {
      try {
        await this.read(payload, lane);
      } catch (error) {
        if (!(error instanceof Refused)) {
          throw error;
        }
        if (!HARMLESS.has(error.message)) {
          throw new Error(`a frame of the node is refused: ${error.message}`);
        }
      }
    }
  }

  // -------------------------------------------------------------------------------------------- speaking

  async say(kind, map, recipient = this.nodeKey) {
    const frame = await seal(this, ++this.sequence, recipient, kind, encodeBody(map));
    if (this.control?.writeStatus === 'writable') {
      sendFrame(this.control, TYPE_GOSSIP, frame);
    }
  }

  async hello(reply) {
    await this.say(KIND.hello, {
      l: this.layout, i: this.initial, v: 0, r: 0, d: this.initial, re: reply, a: AGENT,
    });
  }

  /** Do what is due: hellos, heartbeats, requests, and asking again for chunks. */
  async tick() {
    const now = performance.now();
    if (this.control === null) {
      return;
    }
    if (!this.joined && now >= this.greetedAt + HEARTBEAT_MS) {
      this.greetedAt = now;
      await this.hello(false);
    }
    if (this.joined && now >= this.beatAt + HEARTBEAT_MS) {
      this.beatAt = now;
      await this.say(KIND.status, { r: 0, v: 0, d: this.initial, k: {}, e: false }, Buffer.alloc(0));
    }
    if (this.assembly === null && now >= this.askAt) {
      this.askAt = now + this.askPause;
      this.askPause = Math.min(1.2 * this.askPause, RESYNC_MAX_MS);
      await this.say(KIND.request, { h: null });
    }
    if (this.assembly !== null && now >= this.assembly.progressAt + this.assembly.patience) {
      this.assembly.progressAt = now;
      this.assembly.patience *= 2;
      this.assembly.granted.clear();
      if (++this.assembly.stalls >= MAX_STALLS) {
        this.assembly = null;
      } else {
        await this.grant();
      }
    }
  }

  /** Ask for the next run of chunks, with at most six on their way. */
  async grant() {
    const { announced, missing, granted } = this.assembly;
    const waiting = [...missing].filter((index) => !granted.has(index)).sort((a, b) => a - b);
    const room = CREDIT_CHUNKS - granted.size;
    if (waiting.length === 0 || room < Math.min(CREDIT_CHUNKS / 2, waiting.length)) {
      return;
    }
    let count = 1;
    while (count < room && waiting[count] === waiting[0] + count) {
      count += 1;
    }
    for (let i = 0; i < count; i += 1) {
      granted.add(waiting[0] + i);
    }
    await this.say(KIND.grant, {
      in: uint(announced.incarnation), s: uint(announced.sequence), f: waiting[0], n: count,
    });
  }

  // --------------------------------------------------------------------------------------------- reading

  async read(frame, lane) {
    const message = parse(frame);
    if (!message.federation.equals(this.federation)) {
      throw new Refused('federation');
    }
    if (!message.sender.equals(this.nodeKey)) {
      throw new Refused('stranger');
    }
    if (message.chunk) {
      await this.hearChunk(message, lane);
      return;
    }
    if (message.recipient.length !== 0 && !message.recipient.equals(this.key.publicKey.raw)) {
      throw new Refused('recipient');
    }
    const { seen } = this;
    const { incarnation, sequence } = message;
    const same = incarnation === seen.incarnation;
    if (incarnation < seen.incarnation
      || (same && (sequence <= seen.highest - REPLAY_WINDOW || seen.sequences.has(sequence)))) {
      throw new Refused('replay');
    }
    if (!(await this.node.publicKey.verify(message.signed, message.signature))) {
      throw new Refused('signature');
    }
    if (!same) {
      this.seen = { incarnation, highest: sequence, sequences: new Set() };
      this.forget();
    }
    this.seen.sequences.add(sequence);
    this.seen.highest = sequence > this.seen.highest ? sequence : this.seen.highest;
    if (message.bodyBytes > this.bodyLimit(message.kind)) {
      throw new Refused('offence-oversized');
    }
    if (message.body === null) {
      await this.hearAnnouncement(message);
    } else if (!digest(message.body).equals(message.digests[0])) {
      throw new Refused('body-digest');
    } else {
      await this.hearBody(message, message.body);
    }
  }

  bodyLimit(kind) {
    const { parameters } = this.options;
    const update = parameters === undefined ? MAX_BODY_BYTES : 4 * parameters;
    return MAX_MAP_BYTES + (kind === KIND.delta || kind === KIND.keyframe ? update : 0);
  }

  async hearAnnouncement(message) {
    if (message.kind !== KIND.keyframe || !this.joined) {
      return; // a delta: not for one who holds no replica
    }
    if (this.assembly !== null) {
      throw new Refused('assembly-twin');
    }
    this.chunks = 0;
    this.bulkChunks = 0;
    this.assembly = {
      announced: message,
      body: Buffer.alloc(message.bodyBytes),
      missing: new Set(message.digests.keys()),
      granted: new Set(),
      progressAt: performance.now(),
      patience: STALL_MS,
      stalls: 0,
    };
    await this.grant();
  }

  async hearChunk(chunk, lane) {
    const { assembly } = this;
    const index = Number(chunk.index);
    if (assembly === null
      || chunk.incarnation !== assembly.announced.incarnation
      || chunk.sequence !== assembly.announced.sequence
      || !assembly.missing.has(index)) {
      throw new Refused('chunk');
    }
    const start = index * CHUNK_BYTES;
    const length = Math.min(CHUNK_BYTES, assembly.body.length - start);
    if (chunk.data.length !== length || !digest(chunk.data).equals(assembly.announced.digests[index])) {
      throw new Error(`chunk ${index} is not the announced one`);
    }
    chunk.data.copy(assembly.body, start);
    assembly.missing.delete(index);
    assembly.granted.delete(index);
    assembly.progressAt = performance.now();
    assembly.stalls = 0;
    this.chunks += 1;
    this.bulkChunks += lane === BULK ? 1 : 0;
    if (assembly.missing.size > 0) {
      await this.grant();
    } else {
      this.assembly = null;
      await this.hearBody(assembly.announced, assembly.body);
    }
  }

  async hearBody(message, bytes) {
    const body = decodeBody(message.kind, bytes);
    const now = performance.now();
    if (message.kind === KIND.bye) {
      throw new Error(`the node left while waiting for ${this.waitsFor}: ${body.reason}`);
    }
    if (message.kind === KIND.hello) {
      if (!body.reply && now >= this.repliedAt + REPLY_PAUSE_MS) {
        this.repliedAt = now;
        await this.hello(true);
      }
      if (!body.layout.equals(this.layout)) {
        throw new Error(`the node has another layout: ${body.layout.toString('hex')}`);
      }
      if (!this.joined) {
        this.joined = true;
        this.askAt = now + REORDER_MS;
      }
    } else if (message.kind === KIND.keyframe) {
      if (!this.joined || message.recipient.length === 0) {
        throw new Refused('unsolicited-keyframe');
      }
      this.adopt(body);
    }
  }

  adopt({ version, round, digest: claimed, codec, payload }) {
    if (codec !== 1n) {
      throw new Refused('offence-keyframe-codec');
    }
    checkFloat32(payload, this.options.parameters);
    const actual = digest(payload);
    if (!actual.equals(claimed)) {
      throw new Refused('offence-keyframe-digest');
    }
    this.holds = true;
    this.askAt = Infinity;
    const first = Math.min(4, payload.length / 4);
    this.outcome.resolve({
      ok: true,
      round,
      version,
      parameters: payload.length / 4,
      first: Array.from({ length: first }, (_, i) => payload.readFloatLE(4 * i)),
      digest: actual.toString('hex'),
      records: this.records,
      chunks: this.chunks,
      bulk_chunks: this.bulkChunks,
    });
  }
}

/** Verify an address record: a signed envelope that holds its signer's own record. */
export async function readRecord(bytes) {
  let record;
  try {
    const envelope = await RecordEnvelope.openAndCertify(bytes, PeerRecord.DOMAIN);
    if (!Buffer.from(envelope.payloadType).equals(PeerRecord.CODEC)) {
      throw new Error('payload type');
    }
    record = PeerRecord.createFromProtobuf(envelope.payload);
    if (!peerIdFromPublicKey(envelope.publicKey).equals(record.peerId)) {
      throw new Error('signed by another');
    }
  } catch (error) {
    throw new Error(`an address record does not verify: ${error.message}`);
  }
  const addresses = record.multiaddrs.map((address) => address.toString());
  return { peer: record.peerId.toString(), addresses, seq: record.seqNumber };
}

// --------------------------------------------------------------------------------------------------- main

/** Print one line of JSON; a bigint becomes a plain number of any length. */
function print(value) {
  const line = JSON.stringify(value, (_, field) => (typeof field === 'bigint' ? `bigint ${field}` : field));
  process.stdout.write(`${line.replaceAll(/"bigint (\d+)"/g, '$1')}\n`);
}

/** The connection monitor of js-libp2p stays on: it pings every 10 s, and ends a connection where that fails. */
export async function makeHost(key, listen) {
  return createLibp2p({
    privateKey: key,
    addresses: { listen },
    transports: [tcp()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
  });
}

async function exchange(options) {
  const key = await generateKeyPairFromSeed('Ed25519', Buffer.from(options.seed, 'hex'));
  const node = peerIdFromString(options.node.peer);
  const member = new Member(options, key, node);
  const timeout = setTimeout(
    () => member.fail(new Error(`timed out while waiting for ${member.waitsFor}`)),
    1000 * (options.timeout_s ?? 20),
  );
  const host = await makeHost(key, options.listen ? ['/ip4/127.0.0.1/tcp/0'] : []);
  let ticking = Promise.resolve();
  const ticks = setInterval(() => {
    ticking = ticking.then(() => member.tick()).catch((error) => member.fail(error));
  }, 25);
  try {
    if (options.listen) {
      const address = host.getMultiaddrs()[0].toString().replace(/\/p2p\/.*/, '');
      member.advertised = options.advertise ?? [address];
      await host.handle(PROTOCOL, (stream, connection) => {
        member.accept(stream, connection).catch((error) => member.fail(error));
      });
      print({ listening: address, peer: host.peerId.toString() });
    } else {
      dial(host, member).catch((error) => member.fail(error));
    }
    const result = await member.outcome.promise;
    clearTimeout(timeout);
    if (options.hold_s) {
      await hold(host, member, 1000 * options.hold_s);
      result.ping_ms = host.getConnections()[0].rtt ?? null;
    }
    clearInterval(ticks);
    await ticking;
    await member.say(KIND.bye, { why: 'done' }, Buffer.alloc(0));
    await member.control.close({ signal: AbortSignal.timeout(1000) }).catch(() => {});
    return result;
  } finally {
    clearTimeout(timeout);
    clearInterval(ticks);
    await Promise.race([host.stop(), new Promise((resolve) => setTimeout(resolve, 1000))]);
  }
}

/** Stay for a while, and fail where the connection does not. */
async function hold(host, member, duration) {
  host.addEventListener('connection:close', () => member.fail(new Error('the connection did not last')));
  let enough;
  const passed = new Promise((resolve) => {
    enough = setTimeout(resolve, duration);
  });
  await Promise.race([passed, member.broken.promise]).finally(() => clearTimeout(enough));
}

async function dial(host, member) {
  const connection = await host.dial(multiaddr(`${member.options.node.address}/p2p/${member.node}`));
  await member.open(connection, CONTROL);
  if (member.options.bulk) {
    await member.open(connection, BULK);
  }
}

if (process.argv[1] && import.meta.url === pathToFileURL(realpathSync(process.argv[1])).href) {
  try {
    print(await exchange(JSON.parse(readFileSync(0, 'utf8'))));
  } catch (error) {
    print({ ok: false, why: error.message });
    process.exitCode = 1;
  }
  setTimeout(() => process.exit(), 200).unref();
}
