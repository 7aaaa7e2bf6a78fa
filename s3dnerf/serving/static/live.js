// A live session over WebRTC: the microphone goes out, the face and its sound come back.

// Connect, and show the face in a video element. `ended` is called when the session is over.
export async function startLive(video, portrait, options, ended) {
  const microphone = await navigator.mediaDevices.getUserMedia({ audio: true });
  const connection = new RTCPeerConnection();
  const commands = connection.createDataChannel("commands");
  let over = false;

  function stop() {
    if (over) return;
    over = true;
    for (const track of microphone.getTracks()) track.stop();
    connection.close();
    video.srcObject = null;
    ended();
  }

  connection.addEventListener("track", (event) => {
    const stream = video.srcObject || new MediaStream();
    stream.addTrack(event.track);
    video.srcObject = stream;
  });
  connection.addEventListener("connectionstatechange", () => {
    if (["failed", "closed", "disconnected"].includes(connection.connectionState)) stop();
  });
  try {
    for (const track of microphone.getTracks()) connection.addTrack(track, microphone);
    connection.addTransceiver("video", { direction: "recvonly" });
    await connection.setLocalDescription(await connection.createOffer());
    await gatherCandidates(connection);
    const response = await fetch("v1/live/offer", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ sdp: connection.localDescription.sdp, type: "offer", portrait, options }),
    });
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error);
    await connection.setRemoteDescription({ sdp: answer.sdp, type: answer.type });
  } catch (error) {
    stop();
    throw error;
  }
  return { stop, send: (name) => commands.readyState === "open" && commands.send(name) };
}

// The server takes one offer with all addresses in it.
function gatherCandidates(connection) {
  if (connection.iceGatheringState === "complete") return Promise.resolve();
  return new Promise((resume) => {
    connection.addEventListener("icegatheringstatechange", () => {
      if (connection.iceGatheringState === "complete") resume();
    });
    setTimeout(resume, 2000);
  });
}
