from django.urls import path

from work.views import Projects

urlpatterns = [path("projects", Projects.as_view())]
