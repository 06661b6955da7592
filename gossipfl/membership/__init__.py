"""Who belongs to a federation: the table that messages are checked against, and the signed versions it comes from."""

from gossipfl.membership.roster import FEDERATION_ID_BYTES, Member, Membership, check_name, federation_id_of

__all__ = ["FEDERATION_ID_BYTES", "Member", "Membership", "check_name", "federation_id_of"]
