{#
  Hourly ticks. A tick at hour H knows rows with available_at < H, so it may be used by any prediction at or after H.
  Hours are counted since the epoch (UTC), which makes windows indifferent to daylight saving.
  A local day holds the ticks after its midnight up to and including the next: those that know nothing later.
#}
{% macro tick_hour(instant) -%} (unix_micros({{ instant }}) div 3600000000 + 1) {%- endmacro %}

{# The ticks of hours that have come, and of the days that are built now. #}
{% macro due_ticks(hours) -%}
  select * from (
    select
      *,
      timestamp_seconds(hour * 3600) as event_timestamp,
      greatest(
        date'{{ var('first_day') }}',
        to_date(from_utc_timestamp(timestamp_seconds(hour * 3600 - 1), '{{ var('timezone') }}'))
      ) as day
    from {{ hours }}
    where hour * 3600 <= unix_seconds({{ as_of() }})
  ) where {{ built_days() }}
{%- endmacro %}

{#
  One row per entity and hour in which any window's content changes: when a row enters a window, and when it leaves.
    entity    column that identifies the entity
    events    relation or CTE with that column, `available_at` and the measured columns
    measures  {name: SQL aggregate input}; sums are taken, `n` counts rows
    windows   hours, ascending; the result has NAME_WINDOWh per measure and n_WINDOWh
#}
{% macro window_ticks(entity, events, measures, windows) %}
  per_hour as (
    select
      {{ entity }},
      {{ tick_hour('available_at') }} as hour,
      count(*) as n
      {%- for name, input in measures.items() %},
      sum({{ input }}) as {{ name }}
      {%- endfor %}
    from {{ events }}
    where {{ entity }} is not null and available_at < {{ as_of() }}
    group by 1, 2
  ),
  marks as (
    select {{ entity }}, hour from per_hour
    {%- for window in windows %}
    union
    select {{ entity }}, hour + {{ window }} from per_hour
    {%- endfor %}
  ),
  summed as (
    select
      {{ entity }},
      hour
      {%- for window in windows %}
      {%- for name in ['n'] + measures.keys() | list %},
      coalesce(sum({{ name }}) over (
        partition by {{ entity }} order by hour range between {{ window - 1 }} preceding and current row
      ), 0) as {{ name }}_{{ window }}h
      {%- endfor %}
      {%- endfor %}
    from marks left join per_hour using ({{ entity }}, hour)
  ),
  ticks as (
    {{ due_ticks('summed') }}
  )
{% endmacro %}

{# The columns every table carries. #}
{% macro tick_columns(entity) -%}
  {{ entity }},
  event_timestamp,
  event_timestamp as available_at,
  '{{ invocation_id }}' as ingestion_run_id,
  day
{%- endmacro %}
