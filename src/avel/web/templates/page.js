"use strict";
for (const clip of document.querySelectorAll("[data-clip]")) {
  const { length, segment, names, probabilities } = JSON.parse(clip.querySelector("script").textContent);
  const video = clip.querySelector("video");
  const lanes = clip.querySelector(".lanes");
  const lane = clip.querySelector(".lane");
  const playhead = clip.querySelector(".playhead b");
  const reading = clip.querySelector(".reading");
  const spans = [...clip.querySelectorAll("[data-start]")];

  const fit = () => {
    for (const bar of clip.querySelectorAll(".spans button")) {
      bar.classList.toggle("fits", bar.firstElementChild.offsetWidth <= bar.clientWidth);
    }
  };
  const clock = (seconds) => {
    if (length < 120) return String(Number(seconds.toFixed(2)));
    const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
    const rest = String(Math.floor(seconds % 60)).padStart(2, "0");
    return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
  };
  const say = (seconds) => {
    const t = Math.min(Math.max(Math.floor(seconds / segment + 1e-6), 0), probabilities.length - 1);
    const best = probabilities[t].map((value, index) => [value, index]).sort((a, b) => b[0] - a[0]).slice(0, 3);
    const unit = length < 120 ? " s" : "";
    reading.textContent = `${clock(t * segment)} – ${clock((t + 1) * segment)}${unit}: ` +
      best.map(([value, index]) => `${names[index]} ${value.toFixed(2)}`).join(" · ");
  };
  const show = () => {
    const now = video.currentTime;
    playhead.style.left = `${100 * Math.min(now / length, 1)}%`;
    for (const span of spans) {
      // a seek may land a hair before the asked second
      const on = now >= span.dataset.start - 0.002 && now < span.dataset.end - 0.002;
      if (on) span.setAttribute("aria-current", "true");
      else span.removeAttribute("aria-current");
    }
    say(now);
  };
  const secondsAt = (event) => {
    const box = lane.getBoundingClientRect();
    return Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1) * length;
  };
  clip.addEventListener("click", (event) => {
    const span = event.target.closest("[data-start]");
    if (span) video.currentTime = Number(span.dataset.start);
    else if (event.target.closest(".lane")) video.currentTime = secondsAt(event);
    else return;
    show();
  });
  lanes.addEventListener("pointermove", (event) => { if (event.target.closest(".lane")) say(secondsAt(event)); });
  lanes.addEventListener("pointerleave", show);

  const refuse = () => { clip.querySelector(".cannot-play").hidden = false; };
  video.addEventListener("error", refuse);
  video.addEventListener("loadedmetadata", () => { if (!video.videoWidth) refuse(); });
  if (video.error) refuse();
  video.addEventListener("play", () => {
    for (const other of document.querySelectorAll("video")) if (other !== video) other.pause();
    const step = () => { show(); if (!video.paused && !video.ended) requestAnimationFrame(step); };
    step();
  });
  for (const name of ["seeking", "seeked", "pause", "ended", "timeupdate"]) video.addEventListener(name, show);
  new ResizeObserver(fit).observe(lanes);
  fit();
  show();
}
