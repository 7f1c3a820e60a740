{#
  CTE `planned`: a row per flight and tick around the scheduled hour, with what is known at the tick. It includes flights
  that should have left and have not, which departures alone do not show (a ground stop, for example).
    before, after  ticks before and after the scheduled hour; one more tick follows, at which the flight is dropped
    age            ticks since the first after the scheduled departure; negative before it, `after` at the last tick
    waiting        it has not left
    so_far         minutes late at departure or, while waiting, at the tick
  Reads schedules of 168 hours (they are published so long ahead) and `after` more: seen_within_hours must cover both.
#}
{% macro planned_flights(before, after) %}
  plan as (
    select
      flight_id, origin, carrier, unix_seconds(scheduled_departure) / 60 as minute,
      {{ tick_hour('scheduled_departure') }} as first,
      {{ tick_hour('available_at') }} as known
    from {{ pinned('flight_delay_raw', 'flight_schedules') }}
    where {{ seen_within() }} and available_at < {{ as_of() }}
  ),
  gone as (
    select flight_id, dep_delay, {{ tick_hour('available_at') }} as hour_gone
    from {{ pinned('flight_delay_raw', 'flight_departures') }}
    where {{ seen_within() }} and available_at < {{ as_of() }}
  ),
  each_tick as (
    select plan.*, dep_delay, hour_gone, explode(sequence(first - {{ before }}, first + {{ after }})) as hour
    from plan left join gone using (flight_id)
  ),
  planned as (
    select
      origin, carrier, hour, hour - first as age,
      hour_gone is null or hour_gone > hour as waiting,
      if(hour_gone <= hour, dep_delay, hour * 60 - minute) as so_far
    from each_tick
    where hour >= known
  )
{% endmacro %}

{# CTE `plans`, a row per entity and tick: shares late so far and overdue of its flights due in the last `ticks`. #}
{% macro plans_of_the_entity(ticks) %}
  {%- set keys = declared_grid().entity | join(', ') %}
  {{ planned_flights(before=0, after=ticks) }},
  plans as (
    select
      {{ keys }},
      hour,
      avg(if(age < {{ ticks }}, if(so_far > 15, 1, 0), null)) as late_so_far_{{ ticks }}h,
      avg(if(age < {{ ticks }}, if(waiting, 1, 0), null)) as overdue_share_{{ ticks }}h
    from planned
    group by {{ keys }}, hour
  )
{% endmacro %}
