// A Redis of our own, for tests: on a free port, with its data in a temporary folder.
import { spawn, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';

/** Whether there is one to start. */
export const hasRedis = spawnSync('redis-server', ['--version']).status === 0;

/**
 * Starts it, and waits until it answers.
 * @param args more of its options; by default it forgets all when it is restarted
 */
export async function startRedis(...args) {
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'blockpruner-redis-'));
    const port = await freePort();
    const options = ['--port', String(port), '--bind', '127.0.0.1', '--dir', folder, '--save', '', ...args];
    let server;
    const begin = async () => {
        server = spawn('redis-server', options, { stdio: 'ignore' });
        const ended = new Promise((resolve) => server.on('close', resolve));
        server.ended = ended;
        for (const end = Date.now() + 10_000; !(await answers(port));) {
            if (Date.now() > end || server.exitCode !== null) {
                throw new Error('Redis does not answer');
            }
            await new Promise((resolve) => setTimeout(resolve, 20));
        }
    };
    const end = async () => {
        server.kill('SIGKILL');
        await server.ended;
    };
    await begin();
    return {
        url: `redis://127.0.0.1:${port}`,
        port,
        /** Kills it, and starts it again after so many milliseconds. */
        restart: async (after = 0) => {
            await end();
            await new Promise((resolve) => setTimeout(resolve, after));
            await begin();
        },
        stop: async () => {
            await end();
            fs.rmSync(folder, { recursive: true, force: true });
        }
    };
}

function freePort() {
    return new Promise((resolve) => {
        const server = net.createServer().listen(0, '127.0.0.1', () => {
            const { port } = server.address();
            server.close(() => resolve(port));
        });
    });
}

function answers(port) {
    return new Promise((resolve) => {
        const socket = net.connect(port, '127.0.0.1', () => socket.write('PING\r\n'));
        socket.on('data', () => (socket.destroy(), resolve(true)));
        socket.on('error', () => resolve(false));
    });
}
