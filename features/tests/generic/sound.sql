{#
  No key is null, no two rows share their keys, and a known share lies in [0, 1]. One statement, because on small days
  a statement's planning costs more than its reading.
#}
{% test sound(model, keys, shares=[]) %}
select *
from (
  select {{ (keys + shares) | join(', ') }}, count(*) over (partition by {{ keys | join(', ') }}) as copies
  from {{ model }}
) keyed
where copies > 1
{%- for key in keys %} or {{ key }} is null {%- endfor %}
{%- for share in shares %} or {{ share }} not between 0 and 1 {%- endfor %}
{% endtest %}
