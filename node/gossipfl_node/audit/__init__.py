"""audit.jsonl: what a site did and decided, in a form that nobody can change afterwards without being found out.

One JSON object a line, in ASCII, its parts always in this order:

    {"n":17,"time":"...Z","kind":"verdict","fields":{...},"prev":"<hex>","sig":"<base64>"}

``n`` counts from 0, ``prev`` is the BLAKE3 digest of the line before (without its end; 64 zeros in the first), ``sig``
the site's Ed25519 signature:

    what is signed = "gossipfl/1/audit" ‖ 00 ‖ the line up to `,"sig"`

The bytes on the disk are the canonical form: nothing is parsed before its signature holds. A full file is put aside as
``audit-<n of its first entry>.jsonl``; each file begins with an entry ``anchor``, whose ``oldest`` is the first entry
of the oldest file that is kept. ``audit.head`` holds number and digest of the last entry that has reached the disk,
signed too ("gossipfl/1/audit-head").

Entries of the log itself: ``anchor``; ``recovered``, which tells the digest of the bytes before it that a crash left
and that are no entry (``torn``), or that entries (``missing``) or the head (``headless``) were gone when the daemon
started; ``lost``, which counts what could not be kept until the disk took it.
"""

from gossipfl_node.audit.inspection import Verdict, describe, verify
from gossipfl_node.audit.log import AuditLog
from gossipfl_node.audit.turning import Turning

__all__ = ["AuditLog", "Turning", "Verdict", "describe", "verify"]
