// A picture's own values, of 8 or 16 bits. A browser gives a canvas 8 bits of any picture, which is too few to move a
// window over; so the PNG, which has one gray channel and no interlacing, is read here.

/** Fetch a picture: {width, height, values, bits, low, high}. Throws an Error with words for people. */
export async function loadPicture(address, signal) {
  let answer;
  try {
    answer = await fetch(address, { signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("no answer from the page's server");
  }
  if (!answer.ok) throw new Error((await answer.text()).slice(0, 400));
  const bytes = new Uint8Array(await answer.arrayBuffer());
  const picture = (await readPng(bytes)) ?? (await readColours(bytes, answer.headers.get("content-type")));
  const most = 2 ** picture.bits - 1;
  picture.low = Number(answer.headers.get("x-picture-low") ?? 0);
  picture.high = Number(answer.headers.get("x-picture-high") ?? most);
  return picture;
}

async function readPng(bytes) {
  const view = new DataView(bytes.buffer);
  const parts = [];
  let head = null;
  for (let at = 8; at + 8 <= bytes.length; ) {
    const size = view.getUint32(at);
    const name = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (name === "IHDR") {
      head = { width: view.getUint32(at + 8), height: view.getUint32(at + 12), bits: bytes[at + 16], colour: bytes[at + 17] };
    }
    if (name === "IDAT") parts.push(bytes.subarray(at + 8, at + 8 + size));
    at += 12 + size;
  }
  if (!head || head.colour !== 0 || (head.bits !== 8 && head.bits !== 16)) return null;
  const stream = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
  const rows = new Uint8Array(await new Response(stream).arrayBuffer());
  return { ...head, values: undoFilters(rows, head) };
}

/** Read a picture in colours: of 8 bits each, so what a canvas gives is all of it. */
async function readColours(bytes, type) {
  const bitmap = await createImageBitmap(new Blob([bytes], { type }));
  const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const { data, width, height } = context.getImageData(0, 0, bitmap.width, bitmap.height);
  return { width, height, bits: 8, values: null, colours: new Uint32Array(data.buffer) };
}

function undoFilters(rows, { width, height, bits }) {
  const step = bits / 8;
  const stride = width * step;
  const flat = new Uint8Array(stride * height);
  for (let y = 0; y < height; y++) {
    const kind = rows[y * (stride + 1)];
    const from = y * (stride + 1) + 1;
    const to = y * stride;
    const line = rows.subarray(from, from + stride);
    if (kind === 0) {
      flat.set(line, to);
      continue;
    }
    for (let x = 0; x < stride; x++) {
      const left = x >= step ? flat[to + x - step] : 0;
      const up = y ? flat[to + x - stride] : 0;
      let add = 0;
      if (kind === 1) add = left;
      else if (kind === 2) add = up;
      else if (kind === 3) add = (left + up) >> 1;
      else {
        const corner = y && x >= step ? flat[to + x - stride - step] : 0;
        const guess = left + up - corner;
        const a = Math.abs(guess - left);
        const b = Math.abs(guess - up);
        const c = Math.abs(guess - corner);
        add = a <= b && a <= c ? left : b <= c ? up : corner;
      }
      flat[to + x] = line[x] + add;
    }
  }
  if (bits === 8) return flat;
  const values = new Uint16Array(width * height);
  for (let i = 0; i < values.length; i++) values[i] = (flat[2 * i] << 8) | flat[2 * i + 1];
  return values;
}

/** Paint a picture through a window into a canvas of its own size. */
export function paint(picture, canvas, low, high, isInverted = false) {
  const { width, height, values, colours, bits } = picture;
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  const table = new Uint32Array(2 ** bits);
  const span = Math.max(high - low, 1e-6);
  for (let i = 0; i < table.length; i++) {
    let gray = Math.round(Math.min(Math.max((i - low) / span, 0), 1) * 255);
    if (isInverted) gray = 255 - gray;
    table[i] = colours ? gray : 0xff000000 | (gray << 16) | (gray << 8) | gray;
  }
  const context = canvas.getContext("2d", { alpha: false });
  const data = context.createImageData(width, height);
  const pixels = new Uint32Array(data.data.buffer);
  if (colours) {
    for (let i = 0; i < pixels.length; i++) {
      const one = colours[i];
      pixels[i] = 0xff000000 | (table[(one >> 16) & 255] << 16) | (table[(one >> 8) & 255] << 8) | table[one & 255];
    }
  } else for (let i = 0; i < pixels.length; i++) pixels[i] = table[values[i]];
  context.putImageData(data, 0, 0);
}
