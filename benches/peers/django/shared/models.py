from django.db import models
from django_tenants.models import DomainMixin, TenantMixin


class Tenant(TenantMixin):
    # The command `build` makes schemas, as copies of the one that migrations made.
    auto_create_schema = False

    name = models.CharField(max_length=100)


class Domain(DomainMixin):
    pass


class User(models.Model):
    is_authenticated = True

    id = models.UUIDField(primary_key=True)
    email = models.EmailField(unique=True)
    is_active = models.BooleanField(default=True)


class Session(models.Model):
    """Somebody who is logged in, by the hash of their token."""

    token_hash = models.BinaryField(primary_key=True, max_length=32)
    user = models.ForeignKey(User, on_delete=models.CASCADE)
    revoked_at = models.DateTimeField(null=True)


class Member(models.Model):
    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE)
    user = models.ForeignKey(User, on_delete=models.CASCADE)
    role = models.CharField(max_length=20)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["tenant", "user"], name="member_once")]
