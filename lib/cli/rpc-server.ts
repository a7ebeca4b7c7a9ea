import type { Argv } from 'yargs';
import { serveDevices } from '../runtime/device.js';
import { deviceOptions } from './options.js';
import { tell } from './stderr.js';

export const command = 'rpc-server';
export const describe = 'Lend the devices of this computer to others over RPC (experimental), until Ctrl-C';

export const builder = (yargs: Argv) =>
    yargs
        .options({
            host: {
                type: 'string',
                default: '127.0.0.1',
                describe: 'The address that others reach this computer by; whoever reaches it can do harm'
            },
            port: { type: 'number', default: 50052, describe: 'The port' },
            device: deviceOptions.device,
            threads: deviceOptions.threads
        })
        .example('$0 rpc-server --host 10.0.0.2', 'on each computer; then there or elsewhere:')
        .example('$0 prune large.gguf --rpc 10.0.0.2:50052,10.0.0.3:50052 --ratio 0.2 -o smaller.gguf', '');

export async function handler(argv: Awaited<ReturnType<typeof builder>['argv']>): Promise<void> {
    const { host, port, device, threads } = argv;
    const onNotice = (notice: string) => tell(notice, { notice });
    const warning = `whoever reaches ${host}:${port} can do harm: llama.cpp calls its RPC experimental and insecure`;
    tell(warning, { notice: warning });
    await serveDevices(`${host}:${port}`, { device, threads, onNotice });
}
