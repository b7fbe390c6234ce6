"use strict";
for (const clip of document.querySelectorAll("[data-clip]")) {
  const { length, start: fileStart, segment, steps, names, inks, lanes, thousandths } = JSON.parse(clip.querySelector("script").textContent);
  const found = lanes[lanes.length - 1]; // [start, end, number of the label] of every event
  const video = clip.querySelector("video") || Object.assign(new EventTarget(), { currentTime: 0, paused: true });
  const track = clip.querySelector(".track");
  const rows = [...clip.querySelectorAll(".spans")];
  const axis = clip.querySelector(".ticks");
  const playhead = clip.querySelector(".playhead b");
  const reading = clip.querySelector(".reading");
  const list = clip.querySelector("ol");
  const items = [...clip.querySelectorAll("li button")];
  const pen = document.createElement("canvas").getContext("2d");
  // The player's clock may be the file's, which may start late, as in Chromium, or start with the clip, as in Firefox.
  let offset = fileStart;
  let zoom = 1;
  let following = true; // the view goes with the playhead until the user scrolls away from it

  const between = (value, least, most) => Math.min(Math.max(value, least), most);
  // Seconds on the timeline. A seek may land a few milliseconds off: while the player stands there, it is where it was sent.
  let sent = NaN;
  const played = () => {
    const now = between(video.currentTime - offset, 0, length);
    return video.paused && Math.abs(now - sent) < 0.02 ? sent : now;
  };
  const clock = (seconds, decimals = 0) => {
    if (length < 120) return seconds.toFixed(decimals);
    const whole = Math.round(seconds * 10 ** decimals) / 10 ** decimals;
    const rest = (whole % 60).toFixed(decimals).padStart(decimals ? 3 + decimals : 2, "0");
    const minutes = Math.floor(whole / 60);
    return minutes < 60 ? `${minutes}:${rest}` : `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")}:${rest}`;
  };
  const short = (seconds) => clock(seconds, [0, 1, 2].find((d) => Math.abs(seconds * 10 ** d - Math.round(seconds * 10 ** d)) < 0.01) ?? 2);
  const unit = length < 120 ? " s" : "";
  const scale = () => axis.clientWidth / length; // pixels a second
  const make = (name, left, text) => {
    const element = document.createElement("span");
    element.className = name;
    element.style.left = left;
    element.textContent = text;
    return element;
  };

  // What depends on the view: the ticks, and the edges and labels of the spans that are wide enough for them.
  const draw = () => {
    const pixels = scale(), from = track.scrollLeft / pixels, to = from + track.clientWidth / pixels;
    const room = 26 + 8 * clock(length).length;
    const step = steps.find((s) => s * pixels >= room + 16 * (s < 1)) ?? 3600 * Math.ceil(room / pixels / 3600);
    const ticks = [];
    for (let n = Math.max(Math.ceil(from / step) - 1, 0); n * step <= Math.min(to + step, length * 1.0001); n++) {
      const edge = n === 0 ? " first" : (length - n * step) * pixels < room / 2 ? " last" : "";
      ticks.push(make(`tick${edge}`, `${100 * Math.min(n * step / length, 1)}%`, clock(n * step, Number(step < 1))));
    }
    axis.replaceChildren(...ticks);
    const style = getComputedStyle(track);
    pen.font = `${style.fontSize} ${style.fontFamily}`;
    rows.forEach((row, number) => {
      const boxes = [];
      for (const [start, end, label] of lanes[number]) {
        if (end <= from || start >= to || (end - start) * pixels < 8) continue;
        const box = make("box", `${100 * start / length}%`, "");
        box.style.width = `${100 * (end - start) / length}%`;
        const [left, right] = [Math.max(start, from), Math.min(end, to)];
        if (pen.measureText(names[label]).width + 10 < (right - left) * pixels) {
          const text = make("label", `${((left + right) / 2 - start) * pixels}px`, names[label]);
          text.style.color = inks[label];
          box.append(text);
        }
        boxes.push(box);
      }
      row.replaceChildren(row.firstElementChild, ...boxes);
    });
    const [first, last] = [from, Math.min(to, length)].map((seconds) => clock(seconds, Number(to - from < 20)));
    clip.querySelector(".range").textContent = zoom > 1 ? `${first} – ${last}${unit}` : "";
    for (const button of clip.querySelectorAll("[data-zoom]")) {
      button.setAttribute("aria-disabled", button.dataset.zoom > 1 ? zoom >= most() : zoom <= 1);
    }
  };

  // Zooming: the moment that stands `at` pixels from the left of the view stays there.
  const most = () => Math.max(1, Math.min(160 * length / segment, 4e6) / track.clientWidth);
  const visible = (place) => place >= track.scrollLeft && place <= track.scrollLeft + track.clientWidth;
  const middle = () => {
    const place = played() * scale();
    return visible(place) ? place - track.scrollLeft : track.clientWidth / 2;
  };
  const zoomTo = (value, at = middle()) => {
    const seconds = (track.scrollLeft + at) / scale();
    zoom = between(value, 1, most());
    track.style.setProperty("--zoom", zoom);
    track.scrollLeft = seconds * scale() - at;
    draw();
  };
  const zoomBy = (factor) => zoomTo(zoom * factor); // by 0: the whole clip
  for (const button of clip.querySelectorAll("[data-zoom]")) {
    button.addEventListener("click", () => zoomBy(Number(button.dataset.zoom)));
  }
  track.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return; // a pinch on a touch pad comes as this, too
    event.preventDefault();
    const turn = between(-0.01 * event.deltaY * (event.deltaMode ? 30 : 1), -0.5, 0.5);
    zoomTo(zoom * Math.exp(turn), event.clientX - track.getBoundingClientRect().left);
  }, { passive: false });
  let pinch = null;
  const gap = ([one, other]) => Math.max(Math.abs(one.clientX - other.clientX), 20);
  track.addEventListener("touchstart", (event) => {
    if (event.touches.length === 2) pinch = zoom / gap(event.touches);
  }, { passive: true });
  track.addEventListener("touchmove", (event) => {
    if (event.touches.length !== 2 || pinch === null) return;
    event.preventDefault();
    const centre = (event.touches[0].clientX + event.touches[1].clientX) / 2;
    zoomTo(pinch * gap(event.touches), centre - track.getBoundingClientRect().left);
  }, { passive: false });
  let waiting = 0;
  track.addEventListener("scroll", () => {
    following = visible(played() * scale());
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(draw);
  });

  const say = (seconds) => {
    const t = between(Math.floor(seconds / segment + 1e-6), 0, thousandths.length - 1);
    const best = thousandths[t].map((value, index) => [value / 1000, index]).sort((a, b) => b[0] - a[0]).slice(0, 3);
    reading.textContent = `${short(t * segment)} – ${short((t + 1) * segment)}${unit}: ` +
      best.map(([value, index]) => `${names[index]} ${value.toFixed(2)}`).join(" · ");
  };
  const show = () => {
    const now = played(), place = now * scale();
    playhead.style.left = `${100 * now / length}%`;
    if (following && !visible(place)) track.scrollLeft = place - 0.1 * track.clientWidth;
    const item = items[found.findIndex(([start, end]) => now >= start && now < end)];
    const before = list?.querySelector("[aria-current]");
    if (item !== before) {
      before?.removeAttribute("aria-current");
      item?.setAttribute("aria-current", "true");
      if (item && !item.matches(":focus")) list.scrollTop = item.offsetTop - list.clientHeight / 3;
    }
    say(now);
    track.setAttribute("aria-valuenow", now.toFixed(3));
    if (video.paused) track.setAttribute("aria-valuetext", reading.textContent); // not read out while the clip plays
  };
  const seek = (seconds) => {
    sent = between(seconds, 0, length);
    video.currentTime = offset + sent;
    following = true;
    show();
  };

  // The pointer. Where several spans share a pixel, the two pixels around it count.
  const secondsAt = (event) => {
    const box = axis.getBoundingClientRect();
    return between((event.clientX - box.left) / box.width, 0, 1) * length;
  };
  const spansAt = (row, seconds) => {
    const [within, near] = [0, 2 / scale()].map((reach) =>
      lanes[rows.indexOf(row)].filter(([start, end]) => start - reach <= seconds && seconds < end + reach));
    return within.length && near.length < 3 ? within : near;
  };
  track.addEventListener("click", (event) => {
    const row = event.target.closest(".spans"), seconds = secondsAt(event);
    const spans = row ? spansAt(row, seconds) : [];
    seek(spans.length ? spans[0][0] : seconds);
  });
  track.addEventListener("pointermove", (event) => {
    const row = event.target.closest(".spans"), seconds = secondsAt(event);
    const spans = row ? spansAt(row, seconds) : [];
    const lines = spans.slice(0, 3).map(([start, end, label]) => `${names[label]}, ${clock(start, 1)} to ${clock(end, 1)}`);
    if (spans.length > 3) lines.push(`and ${spans.length - 3} more: zoom in`);
    track.title = lines.join("\n");
    say(seconds);
  });
  track.addEventListener("pointerleave", show);

  // The keyboard: on the timeline, and one stop for the whole list of events.
  track.addEventListener("keydown", (event) => {
    const now = played(), starts = found.map(([start]) => start);
    const keys = {
      ArrowRight: () => seek((Math.floor(now / segment + 0.01) + 1) * segment),
      ArrowLeft: () => seek((Math.ceil(now / segment - 0.01) - 1) * segment),
      PageDown: () => seek(starts.find((start) => start > now + 0.01) ?? now),
      PageUp: () => seek(starts.findLast((start) => start < now - 0.01) ?? now),
      Home: () => seek(0),
      End: () => seek(length),
      "+": () => zoomBy(2),
      "=": () => zoomBy(2),
      "-": () => zoomBy(0.5),
      0: () => zoomBy(0),
      " ": () => video.paused ? video.play?.() : video.pause(),
    };
    if (!(event.key in keys) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
  });
  items.forEach((item, number) => {
    item.tabIndex = number ? -1 : 0;
    item.addEventListener("click", () => seek(found[number][0]));
    item.addEventListener("focus", () => {
      list.querySelector("[tabindex='0']").tabIndex = -1;
      item.tabIndex = 0;
    });
  });
  list?.addEventListener("keydown", (event) => {
    const number = items.indexOf(event.target);
    const next = { ArrowDown: number + 1, ArrowUp: number - 1, Home: 0, End: items.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    items[between(next, 0, items.length - 1)].focus();
  });

  const refuse = () => { clip.querySelector(".cannot-play").hidden = false; };
  video.addEventListener("error", refuse);
  video.addEventListener("loadedmetadata", () => { if (!video.videoWidth) refuse(); });
  if (video.error) refuse();
  const settle = () => { if (fileStart - video.currentTime > 0.1) offset = 0; show(); }; // it now stands at its start
  if (video.readyState >= 2) settle(); // HAVE_CURRENT_DATA
  else video.addEventListener("loadeddata", settle, { once: true });
  video.addEventListener("play", () => {
    sent = NaN;
    for (const other of document.querySelectorAll("video")) if (other !== video) other.pause();
    const step = () => { show(); if (!video.paused && !video.ended) requestAnimationFrame(step); };
    step();
  });
  video.addEventListener("seeking", () => { following = true; });
  for (const name of ["seeking", "seeked", "pause", "ended", "timeupdate"]) video.addEventListener(name, show);
  clip.querySelector(".zoom").hidden = false;
  new ResizeObserver(draw).observe(track);
  draw();
  show();
}
