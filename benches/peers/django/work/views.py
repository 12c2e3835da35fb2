import uuid

from django.contrib.postgres.expressions import ArraySubquery
from django.db import transaction
from django.db.models import OuterRef
from django.utils import timezone
from django.utils.text import slugify
from rest_framework import serializers
from rest_framework.generics import ListCreateAPIView

from .models import AuditEntry, OutboxEvent, Project, ProjectMember


class ProjectSerializer(serializers.ModelSerializer):
    member_ids = serializers.ListField(child=serializers.UUIDField(), read_only=True)

    class Meta:
        model = Project
        fields = [
            "id",
            "name",
            "slug",
            "description",
            "status",
            "priority",
            "owner_id",
            "created_by",
            "member_ids",
            "start_date",
            "end_date",
            "budget_amount",
            "budget_currency",
            "progress",
            "created_at",
            "updated_at",
        ]
        read_only_fields = ["id", "slug", "owner_id", "created_by", "progress", "created_at", "updated_at"]
        extra_kwargs = {"status": {"required": False}, "priority": {"required": False}}


class Projects(ListCreateAPIView):
    """A page of projects with their number, and a new one with its audit entry and event."""

    serializer_class = ProjectSerializer

    def get_queryset(self):
        members = ProjectMember.objects.filter(project=OuterRef("pk")).order_by("user_id")
        listed = Project.objects.order_by("-created_at", "-id")
        return listed.annotate(member_ids=ArraySubquery(members.values("user_id")))

    def perform_create(self, serializer):
        now, user = timezone.now(), self.request.user.pk
        given = {"status": "planning", "priority": "medium", **serializer.validated_data}
        with transaction.atomic():
            project = Project(
                id=uuid.uuid4(),
                slug=slugify(given["name"]),
                owner_id=user,
                created_by=user,
                created_at=now,
                updated_at=now,
                **given,
            )
            project.save(force_insert=True)
            project.member_ids = []
            serializer.instance = project
            told = serializer.data
            AuditEntry(
                id=uuid.uuid4(),
                occurred_at=now,
                actor_id=user,
                action="project.created",
                resource_id=project.pk,
                changes={field: {"before": None, "after": value} for field, value in told.items()},
            ).save(force_insert=True)
            OutboxEvent(
                id=uuid.uuid4(), occurred_at=now, type="project.created", resource_id=project.pk, data=told
            ).save(force_insert=True)
