{#
  Flights around their scheduled hour as a tick sees them, a row per flight and tick: CTE `planned`. It tells of those
  that should have left and have not, which departures alone cannot: a ground stop shows here first.
    before, after  ticks before and after the scheduled hour; one more follows, at which the flight is out of sight
    age            ticks since the first after the scheduled departure: below 0 it lies ahead, `after` is out of sight
    waiting        it has not left
    so_far         minutes late at departure or, waiting, until now
  Needs schedules of 168 hours (as long ahead they are published) and `after` more: say so in seen_within_hours.
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

{# Of an entity's flights due within the last `ticks`, the shares late so far and overdue: CTE `plans`, a row per tick. #}
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
