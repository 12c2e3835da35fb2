import hashlib
import json
import secrets
import uuid

from django.core.management.base import BaseCommand
from django.db import connection
from django.utils import timezone
from django_tenants.utils import tenant_context
from shared.models import Domain, Member, Session, Tenant, User
from work.models import Project, ProjectMember


TABLES = ["work_project", "work_projectmember", "work_auditentry", "work_outboxevent"]


def copy_schema(name):
    """What `migrate_schemas` makes, sooner: how tenants are made is not what is measured here."""
    with connection.cursor() as cursor:
        cursor.execute(f"create schema {name}")
        for table in TABLES:
            cursor.execute(f"create table {name}.{table} (like template.{table} including all)")
        cursor.execute(
            f"alter table {name}.work_projectmember add foreign key (project_id) "
            f"references {name}.work_project (id) on delete no action deferrable initially deferred"
        )


class Command(BaseCommand):
    help = "Makes tenants with projects; prints for each a line of JSON with its host and a token for it."

    def add_arguments(self, parser):
        parser.add_argument("--tenants", type=int, required=True)
        parser.add_argument("--projects", type=int, required=True)

    def handle(self, *args, tenants, projects, **options):
        template = Tenant(schema_name="template", name="Template")
        template.auto_create_schema = True
        template.save(verbosity=0)
        for number in range(tenants):
            tenant = Tenant(schema_name=f"tenant_{number}", name=f"Tenant {number}")
            tenant.save()
            copy_schema(tenant.schema_name)
            domain = Domain.objects.create(domain=f"t{number}.localhost", tenant=tenant, is_primary=True)
            user = User.objects.create(id=uuid.uuid4(), email=f"owner{number}@example.com")
            Member.objects.create(tenant=tenant, user=user, role="owner")
            token = secrets.token_urlsafe(32)
            Session.objects.create(token_hash=hashlib.sha256(token.encode()).digest(), user=user)
            with tenant_context(tenant):
                self.fill(user, projects)
            self.stdout.write(json.dumps({"host": domain.domain, "token": token}))

    def fill(self, user, count):
        now = timezone.now()
        made = Project.objects.bulk_create(
            Project(
                id=uuid.uuid4(),
                name=f"Project {n}",
                slug=f"project-{n}",
                description="One of twenty",
                status="active",
                priority="medium",
                owner_id=user.id,
                created_by=user.id,
                budget_amount="1500.00",
                budget_currency="SGD",
                created_at=now,
                updated_at=now,
            )
            for n in range(count)
        )
        ProjectMember.objects.bulk_create(
            ProjectMember(project=project, user_id=user.id, added_at=now) for project in made
        )
