// Azurite's Blob service, ended by the end of its standard input: that comes however its parent ends.
process.stdin.on("end", () => process.exit(0)).resume();
require("azurite/dist/src/blob/main.js");
