import hashlib

from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.exceptions import AuthenticationFailed

from .models import Member


class TokenAuthentication(BaseAuthentication):
    """One query: the session, its user, and what they are in the tenant of the request."""

    def authenticate(self, request):
        scheme, _, token = get_authorization_header(request).partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        try:
            member = Member.objects.select_related("user").get(
                tenant_id=request.tenant.pk,
                user__is_active=True,
                user__session__token_hash=hashlib.sha256(token).digest(),
                user__session__revoked_at=None,
            )
        except Member.DoesNotExist:
            raise AuthenticationFailed from None
        return member.user, member

    def authenticate_header(self, request):
        return "Bearer"
