/* SPDX-License-Identifier: MIT */
/*
 * rtc.c - the real-time clock: a goldfish RTC that tells the host's time.
 *
 * Registers as in Linux, drivers/rtc/rtc-goldfish.c.  The guest may set its
 * clock, which is kept as an offset, and an alarm, which is a timerfd made
 * when the first alarm is.
 *
 * Saved: offset, alarm, interrupt state.  Not the time: a restored guest that
 * reads the clock finds what the time is then.  I/O lock held.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "map.h"
#include "platform.h"

enum { RTC_TIME_LOW = 0x00, RTC_TIME_HIGH = 0x04, RTC_ALARM_LOW = 0x08, RTC_ALARM_HIGH = 0x0c,
       RTC_IRQ_ENABLED = 0x10, RTC_CLEAR_ALARM = 0x14, RTC_ALARM_STATUS = 0x18,
       RTC_CLEAR_INTERRUPT = 0x1c };

struct rtc {
	struct device	dev;
	struct machine	*m;
	struct io	timer;		/* fd -1 until there is an alarm */
	/* Saved. */
	int64_t		offset;		/* ns, guest's clock minus host's */
	uint64_t	alarm;		/* ns, guest's clock */
	uint32_t	latch_high;	/* of the last time read, or half set */
	uint32_t	alarm_high;
	uint8_t		armed, irq_on, pending;
};

static uint64_t rtc_host(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t rtc_now(const struct rtc *c)
{
	return rtc_host() + (uint64_t)c->offset;
}

/* Set the timer as the alarm is. */
static void rtc_arm(struct rtc *c)
{
	struct itimerspec its = { 0 };
	uint64_t at = c->alarm - (uint64_t)c->offset;

	if (c->timer.fd < 0) {
		if (!c->armed)
			return;
		c->timer.fd = timerfd_create(CLOCK_REALTIME, TFD_CLOEXEC | TFD_NONBLOCK);
		if (c->timer.fd < 0 || loop_add(&c->m->loop, &c->timer, EPOLLIN) < 0) {
			log_line(&c->m->log, VMM_LOG_ERROR, "rtc: no timer for an alarm");
			return;
		}
	}
	if (c->armed) {
		its.it_value.tv_sec = (time_t)(at / 1000000000u & INT64_MAX);
		its.it_value.tv_nsec = (long)(at % 1000000000u);
		if (!at)
			its.it_value.tv_nsec = 1;	/* 0 would disarm */
	}
	timerfd_settime(c->timer.fd, TFD_TIMER_ABSTIME, &its, NULL);
}

static void rtc_fired(void *arg, uint32_t events)
{
	struct rtc *c = arg;
	uint64_t count;

	(void)events;
	if (read(c->timer.fd, &count, sizeof(count)) < 0)
		return;
	c->armed = 0;
	c->pending = 1;
	if (c->irq_on)
		irq_pulse(&c->dev.irq);
}

static uint64_t rtc_read(void *dev, uint64_t off, unsigned int len)
{
	struct rtc *c = dev;
	uint64_t now;

	(void)len;
	switch (off) {
	case RTC_TIME_LOW:		/* latches the high half */
		now = rtc_now(c);
		c->latch_high = (uint32_t)(now >> 32);
		return (uint32_t)now;
	case RTC_TIME_HIGH:
		return c->latch_high;
	case RTC_ALARM_LOW:
		return (uint32_t)c->alarm;
	case RTC_ALARM_HIGH:
		return c->alarm >> 32;
	case RTC_IRQ_ENABLED:
		return c->irq_on;
	case RTC_ALARM_STATUS:
		return c->armed;
	default:
		return 0;
	}
}

static void rtc_write(void *dev, uint64_t off, unsigned int len, uint64_t val)
{
	struct rtc *c = dev;

	(void)len;
	switch (off) {
	case RTC_TIME_HIGH:
		c->latch_high = (uint32_t)val;
		break;
	case RTC_TIME_LOW:		/* written last: sets the clock */
		c->offset = (int64_t)(((uint64_t)c->latch_high << 32 | (uint32_t)val) - rtc_host());
		if (c->armed)
			rtc_arm(c);
		break;
	case RTC_ALARM_HIGH:
		c->alarm_high = (uint32_t)val;
		break;
	case RTC_ALARM_LOW:		/* written last: arms it */
		c->alarm = (uint64_t)c->alarm_high << 32 | (uint32_t)val;
		c->armed = 1;
		rtc_arm(c);
		break;
	case RTC_IRQ_ENABLED:
		c->irq_on = val & 1;
		if (c->irq_on && c->pending)
			irq_pulse(&c->dev.irq);
		break;
	case RTC_CLEAR_ALARM:
		c->armed = 0;
		rtc_arm(c);
		break;
	case RTC_CLEAR_INTERRUPT:
		c->pending = 0;
		break;
	default:
		break;
	}
}

static void rtc_reset(struct device *d)
{
	struct rtc *c = (struct rtc *)d;

	c->offset = 0;
	c->alarm = 0;
	c->latch_high = c->alarm_high = 0;
	c->armed = c->irq_on = c->pending = 0;
	rtc_arm(c);
}

static void rtc_save(const struct device *d, struct writer *w)
{
	const struct rtc *c = (const struct rtc *)d;

	put_u64(w, (uint64_t)c->offset);
	put_u64(w, c->alarm);
	put_u32(w, c->latch_high);
	put_u32(w, c->alarm_high);
	put_u8(w, c->armed);
	put_u8(w, c->irq_on);
	put_u8(w, c->pending);
}

static int rtc_load(struct device *d, struct reader *r, struct vmm_error *err)
{
	struct rtc *c = (struct rtc *)d;

	c->offset = (int64_t)get_u64(r);
	c->alarm = get_u64(r);
	c->latch_high = get_u32(r);
	c->alarm_high = get_u32(r);
	c->armed = get_u8(r) & 1;
	c->irq_on = get_u8(r) & 1;
	c->pending = get_u8(r) & 1;
	rtc_arm(c);
	return reader_end(r, d->name, err);
}

static void rtc_free(struct device *d)
{
	struct rtc *c = (struct rtc *)d;

	if (c->timer.fd >= 0) {
		loop_del(&c->m->loop, &c->timer);
		close(c->timer.fd);
	}
	free(c);
}

static const struct bus_ops rtc_bus = { rtc_read, rtc_write };

static const struct device_ops rtc_ops = {
	.type		= "rtc",
	.version	= 1,
	.bus		= &rtc_bus,
	.reset		= rtc_reset,
	.save		= rtc_save,
	.load		= rtc_load,
	.free		= rtc_free,
};

int rtc_add(struct machine *m, struct vmm_error *err)
{
	struct rtc *c = calloc(1, sizeof(*c));

	if (!c)
		return fail(err, VMM_ENOMEM, "real-time clock");
	c->dev = (struct device){
		.ops = &rtc_ops, .name = "rtc", .gpa = MAP_RTC, .size = 0x1000,
		.irq.line = IRQ_RTC, .compatible = "google,goldfish-rtc",
	};
	c->m = m;
	c->timer = (struct io){ .fn = rtc_fired, .arg = c, .fd = -1 };
	return machine_add(m, &c->dev, err);
}
