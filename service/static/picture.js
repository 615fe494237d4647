// A chosen file as what is sent and what is drawn.

import { takesType } from "./api.js";

const DRAWN_PX = 448;
const SENT_AS_IT_IS_BYTES = 400_000;

// {blob, crop, note}: the file, or of a large photo its centre square (all that the model looks at), because the page
// sends it many times, and of a type that the service doesn't take as well; a canvas with that square; what to say about
// it. A file that the browser can't read is sent as it is: the service says what is wrong with it.
export async function prepare(blob) {
  let picture;
  try {
    picture = await createImageBitmap(blob);
  } catch {
    return { blob, crop: null, note: "" };
  }
  const side = Math.min(picture.width, picture.height);
  const crop = Object.assign(document.createElement("canvas"), { width: DRAWN_PX, height: DRAWN_PX });
  const pen = crop.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.fillStyle = "#fff"; // under transparency, as the service does
  pen.fillRect(0, 0, DRAWN_PX, DRAWN_PX);
  pen.drawImage(picture, (picture.width - side) / 2, (picture.height - side) / 2, side, side, 0, 0, DRAWN_PX, DRAWN_PX);
  const large = blob.size > SENT_AS_IT_IS_BYTES;
  if (!large && takesType(blob.type)) return { blob, crop, note: "" };
  const square = await new Promise((resolve) => crop.toBlob(resolve, "image/png"));
  const sizes = large ? `, ${Math.round(square.size / 1024)} of ${Math.round(blob.size / 1024)} kB` : "";
  return { blob: square, crop, note: `, sent as its centre square, ${DRAWN_PX} px${sizes}` };
}
