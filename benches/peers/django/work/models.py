from django.db import models


class Project(models.Model):
    id = models.UUIDField(primary_key=True)
    name = models.TextField()
    slug = models.TextField(unique=True)
    description = models.TextField(null=True)
    status = models.TextField()
    priority = models.TextField()
    owner_id = models.UUIDField()
    created_by = models.UUIDField()
    start_date = models.DateField(null=True)
    end_date = models.DateField(null=True)
    budget_amount = models.DecimalField(max_digits=19, decimal_places=4, null=True)
    budget_currency = models.TextField(null=True)
    progress = models.DecimalField(max_digits=5, decimal_places=2, default=0)
    version = models.BigIntegerField(default=1)
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()

    class Meta:
        indexes = [models.Index(fields=["-created_at", "-id"], name="projects_newest")]


class ProjectMember(models.Model):
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="members")
    user_id = models.UUIDField()
    added_at = models.DateTimeField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["project", "user_id"], name="project_member_once")]


class AuditEntry(models.Model):
    id = models.UUIDField(primary_key=True)
    occurred_at = models.DateTimeField()
    actor_id = models.UUIDField()
    action = models.TextField()
    resource_id = models.UUIDField()
    changes = models.JSONField()


class OutboxEvent(models.Model):
    id = models.UUIDField(primary_key=True)
    occurred_at = models.DateTimeField()
    type = models.TextField()
    resource_id = models.UUIDField()
    data = models.JSONField()
